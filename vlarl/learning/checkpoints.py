"""Where a training stands, in folders that hold no code: numbers, and tensors by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlarl.errors import FatalError
from vlarl.files import durable_folder
from vlarl.weights.checkpoint import NotFiniteError, count_not_finite, write_tensors

_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_SLACK_BYTES = 2**20
"""For headers and the file system's own records."""


class ResumeError(FatalError):
    """A checkpoint that can't be gone on from; the message says which and why."""


def write_state(final: Path, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
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
    try:
        state: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(path / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ResumeError(f"checkpoint {path} can't be read: {error}") from error
    for name, tensor in tensors.items():
        # Until 0.1 such checkpoints were written, and a run that goes on from one learns nothing.
        if count_not_finite(tensor):
            raise ResumeError(
                f"checkpoint {path}: {name} has numbers that are not finite; remove the folder to "
                "go on from the one before, or begin a new run"
            )
    return state, tensors
