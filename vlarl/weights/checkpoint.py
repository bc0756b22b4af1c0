"""Checkpoints on disk: safetensors, one file or shards with an index, read one tensor at a time."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlarl.errors import FatalError
from vlarl.files import share
from vlarl.weights.folder import INDEX, SINGLE, CheckpointError, weight_files

_SHARD_BYTES = 5_000_000_000


class NotFiniteError(FatalError):
    """A checkpoint that was to be written has a number that isn't finite."""

    def __init__(self, where: str, found: object) -> None:
        super().__init__(
            f"{where} has numbers that are not finite ({found}), and such a checkpoint is never "
            "written: lower the learning rate and go on from the last checkpoint with --resume; at "
            "the very start, look at the weights that it begins with"
        )


class CheckpointReader:
    """Reads a checkpoint's tensors by key, lazily: what isn't asked for isn't read."""

    def __init__(self, directory: str | Path) -> None:
        """Raises CheckpointError where a file is missing or isn't safetensors."""
        self.directory = Path(directory)
        self._files: dict[str, Any] = {}
        for path in weight_files(self.directory):
            try:
                opened = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"cannot read {path}: {error}") from error
            keys: list[str] = opened.keys()  # type: ignore[no-untyped-call]
            self._files.update(dict.fromkeys(keys, opened))

    def __iter__(self) -> Iterator[str]:
        """All keys, sorted."""
        return iter(sorted(self._files))

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file(key).get_slice(key).get_shape())

    def tensor(self, key: str) -> Tensor:
        """One tensor, in the data type it is stored in, mapped from the file."""
        tensor: Tensor = self._file(key).get_tensor(key)
        return tensor

    def _file(self, key: str) -> Any:  # noqa: ANN401 - safetensors' handle is untyped
        if key not in self._files:
            raise CheckpointError(f"{self.directory} has no tensor {key!r}")
        return self._files[key]


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over keys, data types, shapes and bytes, in the order given."""
    digest = hashlib.sha256()
    for key, tensor in tensors:
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in C order; a view of them where the tensor lies in CPU memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return array.data


def base_digest(directory: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, independent of how they are cut into files.

    Computed once in a process as long as the files stay as they are (about a second a gigabyte).
    """
    files = weight_files(Path(directory).resolve())
    states = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _digest_of_files(Path(directory).resolve(), states)


@functools.lru_cache(maxsize=16)
def _digest_of_files(directory: Path, _states: tuple[tuple[Path, int, int], ...]) -> str:
    reader = CheckpointReader(directory)
    return tensors_digest((key, reader.tensor(key)) for key in reader)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file that others may read: the one place where weights are written.

    Raises:
        NotFiniteError: a number isn't finite; nothing is written.
        SafetensorError, OSError: it can't be written; what was of it is gone again.
    """
    require_finite(str(path.parent), tensors.items())
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        share(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def require_finite(where: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises NotFiniteError for the first tensor of a checkpoint that has a NaN or an infinity.

    where: the checkpoint, for the message.
    """
    for key, tensor in tensors:
        if broken := count_not_finite(tensor):
            raise NotFiniteError(f"{where}: {key}", f"{broken} of {tensor.numel()}")


def count_not_finite(tensor: Tensor) -> int:
    """How many of a tensor's numbers are NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    if tensor.element_size() < 2:
        tensor = tensor.float()  # torch finds no extremes of eight bits
    # The extremes tell in a tenth of the time that `isfinite` takes: they pass NaN on.
    low, high = tensor.detach().aminmax()
    if math.isfinite(low) and math.isfinite(high):
        return 0
    return int((~tensor.isfinite()).sum())


def save_tensors(
    directory: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write tensors as a checkpoint, in files of about ``shard_bytes``, one in memory at a time.

    The name that readers look for (the single file or the index) appears last, so that a
    checkpoint cut short by a crash isn't taken for a whole one; files that others have mapped are
    replaced, never written into.

    Raises:
        NotFiniteError, SafetensorError, OSError: as `write_tensors`; where no checkpoint was, none
            is then.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    partial = directory / f".partial.{os.getpid()}"
    names: list[str] = []
    for shard in _shards(tensors, shard_bytes):
        if names:
            partial.replace(directory / names[-1])
        names.append(f"model-{len(names) + 1:05d}.safetensors")
        write_tensors(partial, shard)
        weight_map.update(dict.fromkeys(shard, names[-1]))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(names) == 1:
        names = [SINGLE]
    partial.replace(directory / names[-1])
    if names == [SINGLE]:
        (directory / INDEX).unlink(missing_ok=True)
    else:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        partial.write_text(json.dumps(index, indent=1), encoding="utf-8")
        partial.replace(directory / INDEX)
    for stale in {path.name for path in directory.glob("model*.safetensors")} - set(names):
        (directory / stale).unlink()


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for key, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[key] = tensor.contiguous()
        size += tensor.nbytes
    yield shard
