"""Folders that are whole or not there, whatever kills the process that writes them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlarl.errors import FatalError
from vlarl.files import share

_STATE = "state.json"
_TENSORS = "tensors.safetensors"


class CheckpointError(FatalError):
    """A checkpoint that can't be gone on from; the message says which and why."""


@contextlib.contextmanager
def durable_folder(final: Path) -> Iterator[Path]:
    """A folder to fill that appears under its final name once it is complete and forced to disk.

    What was there under that name is replaced. What earlier crashes left beside it goes.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(".*.partial"):
        shutil.rmtree(leftover)
    partial = final.with_name(f".{final.name}.partial")
    partial.mkdir()
    yield partial
    for path in (*partial.rglob("*"), partial):
        _force_to_disk(path)
    if final.exists():
        replaced = final.with_name(f".{final.name}.replaced.partial")
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    _force_to_disk(final.parent)


def write_state(final: Path, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes where something stands as a durable folder: state.json and tensors.safetensors."""
    with durable_folder(final) as folder:
        save_file(tensors, folder / _TENSORS)
        share(folder / _TENSORS)
        (folder / _STATE).write_text(json.dumps(state, indent=1) + "\n")


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `write_state` wrote.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    try:
        state: dict[str, Any] = json.loads((path / _STATE).read_text())
        return state, load_file(path / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {error}") from error


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
