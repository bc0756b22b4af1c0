"""What a safetensors file says it holds, read without torch and without its tensors.

    8 bytes: length N of the header | N bytes: JSON, key -> dtype, shape, data_offsets | tensors

The last offset says how long the file must be, so a cut download shows at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vlarl.weights.folder import CheckpointError
from vlarl.weights.whereabouts import pointer_sentence

_LONGEST_HEADER = 100_000_000
"""The format's own bound, in bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by its header."""

    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file.

    Raises:
        CheckpointError: the file is missing, a Git LFS pointer, cut short, or no safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path.parent} is incomplete: {path.name} is missing")
    if pointer := pointer_sentence(path):
        raise CheckpointError(pointer)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= _LONGEST_HEADER else b""
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if size < 8 or (header.startswith(b"{") and len(header) < length):
        raise _cut(path, size, f"at least {8 + length:,}")
    try:
        content = json.loads(header)
        content.pop("__metadata__", None)
        tensors = {
            key: StoredTensor(str(one["dtype"]), tuple(map(int, one["shape"])))
            for key, one in content.items()
        }
        ends = [int(one["data_offsets"][1]) for one in content.values()]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file (its header can't be read): download it again"
        ) from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise _cut(path, size, f"{whole:,}")
    if size > whole:
        raise CheckpointError(
            f"{path} has {size:,} bytes, its header says {whole:,}: download it again"
        )
    return tensors


def _cut(path: Path, size: int, whole: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut short: it has {size:,} bytes of {whole}; download it again (`hf download` "
        "goes on where it stopped)"
    )
