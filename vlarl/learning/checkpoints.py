"""Where a training stands, in folders that hold no code: numbers, and tensors by name.

    CHECKPOINTS/iteration-00012/state.json            where it stands
                                tensors.safetensors   weights and moments, gathered from all ranks

A checkpoint is written aside, forced to disk and renamed: a folder under its final name is
complete. Its tensors are whole, so a training goes on with any number of ranks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlarl.errors import FatalError
from vlarl.files import durable_folder, tidy
from vlarl.learning.ranks import like, whole
from vlarl.weights.checkpoint import NotFiniteError, count_not_finite, write_tensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_SLACK_BYTES = 2**20
"""For headers and the file system's own records."""


class ResumeError(FatalError):
    """A checkpoint that can't be gone on from; the message says which and why."""


class CheckpointFolder(Generic[S]):
    """The checkpoints of one training, numbered by how far it was."""

    def __init__(self, directory: Path, prefix: str, digits: int, kind: type[S]) -> None:
        """The folder needn't be there.

        Args:
            directory: where the checkpoints lie.
            prefix: of a checkpoint's folder, before its number.
            digits: of the number.
            kind: what state.json holds.
        """
        self._directory = directory
        self._prefix = prefix
        self._digits = digits
        self._kind = kind

    def path(self, number: int) -> Path:
        """Where a checkpoint lies."""
        return self._directory / f"{self._prefix}{number:0{self._digits}d}"

    def save(
        self,
        number: int,
        state: S,
        tensors: Mapping[str, Tensor],
        *,
        keep: int,
        best: int | None = None,
    ) -> Path:
        """Writes a checkpoint durably, in place of one with the same number, then removes all but
        the newest.

        Args:
            number: how far the training is.
            state: where it stands.
            tensors: what it has learned, by name.
            keep: how many stay.
            best: a further one that stays.

        Returns:
            Its folder.

        Raises:
            DiskFullError: there is no room.
            NotFiniteError: a number isn't finite. Either way nothing has changed.
        """
        self.recover()
        final = self.path(number)
        write_state(final, asdict(state), tensors)
        kept = None if best is None else self.path(best)
        for old in self._complete()[:-keep]:
            if old != kept:
                shutil.rmtree(old)
        return final

    def recover(self) -> None:
        """Undoes the replacing of a checkpoint that a crash cut short, and takes away halves."""
        tidy(self._directory)

    def latest(self) -> Path | None:
        """The newest complete checkpoint; None: there is none."""
        found = self._complete()
        return found[-1] if found else None

    def load(self, path: Path) -> tuple[S, dict[str, Tensor]]:
        """Reads a checkpoint.

        Raises:
            ResumeError: a file is missing or broken, or a number isn't finite.
        """
        return self.state(path), read_tensors(path)

    def state(self, path: Path) -> S:
        """Reads where a training stood at a checkpoint, and no tensor.

        Raises:
            ResumeError: the file is missing or broken.
        """
        try:
            return self._kind(**read_description(path))
        except TypeError as error:
            raise ResumeError(f"checkpoint {path} can't be read: {error}") from error

    def _complete(self) -> list[Path]:
        found: dict[int, Path] = {}
        for path in self._directory.glob(f"{self._prefix}*"):
            number = path.name.removeprefix(self._prefix)
            # A copy that someone keeps beside them under another name isn't one of them.
            if number.isdecimal() and path == self.path(int(number)):
                found[int(number)] = path
        return [path for _, path in sorted(found.items())]


def gathered(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Parameters whole and on the CPU, as "PREFIX.NAME". Every rank must call it."""
    return {f"{prefix}.{name}": whole(each) for name, each in parameters.items()}


def take_over(
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    prefix: str,
    section: str,
) -> None:
    """Takes over what `gathered` gave; every rank holds all of it.

    Args:
        parameters: what learns, or is learned, by name.
        tensors: a checkpoint's.
        prefix: of their names in it.
        section: of the configuration that says how large they are.

    Raises:
        ResumeError: one isn't in the checkpoint, or is of another size; nothing has changed.
    """
    for name, own in parameters.items():
        saved = tensors.get(f"{prefix}.{name}")
        if saved is None or saved.shape != own.shape:
            was = "isn't in it" if saved is None else f"is {list(saved.shape)} in it"
            raise ResumeError(
                f"the checkpoint doesn't fit the configuration: {prefix}.{name} {was} and has to "
                f"be {list(own.shape)}. A run goes on with the settings of [{section}] that it "
                "began with; start a new run to change them"
            )
    with torch.no_grad():
        for name, own in parameters.items():
            own.copy_(like(tensors[f"{prefix}.{name}"], own))


def write_state(final: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes where something stands as a durable folder: state.json and tensors.safetensors.

    Raises:
        DiskFullError: there is no room.
        NotFiniteError: a number isn't finite. Either way nothing is written.
    """
    try:
        described = json.dumps(state, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise NotFiniteError(f"{final}: its state", error) from error
    needed = _SLACK_BYTES + len(described) + sum(tensor.nbytes for tensor in tensors.values())
    with durable_folder(final, needed) as folder:
        write_tensors(folder / _TENSORS, tensors)
        (folder / _STATE).write_text(described, encoding="utf-8")


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `write_state` wrote.

    Raises:
        ResumeError: a file is missing or broken, or a number isn't finite.
    """
    return read_description(path), read_tensors(path)


def read_description(path: Path) -> dict[str, Any]:
    """Of what `write_state` wrote, state.json.

    Raises:
        ResumeError: it is missing or broken.
    """
    try:
        state: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"checkpoint {path} can't be read: {error}") from error
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Of what `write_state` wrote, the tensors.

    Raises:
        ResumeError: the file is missing or broken, or a number isn't finite.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ResumeError(f"checkpoint {path} can't be read: {error}") from error
    for name, tensor in tensors.items():
        # 0.1.0 wrote such checkpoints, and a run that goes on from one learns nothing.
        if count_not_finite(tensor):
            raise ResumeError(
                f"checkpoint {path}: {name} has numbers that are not finite; remove the folder to "
                "go on from the one before, or begin a new run"
            )
    return tensors
