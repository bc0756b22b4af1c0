"""Trained weights as an OpenVLA checkpoint in the original format, for any loader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlarl.config import LoraConfig
from vlarl.files import durable_folder
from vlarl.models.registry import lora_layers
from vlarl.models.statistics import STATISTICS, Statistics
from vlarl.weights.checkpoint import CheckpointReader, save_tensors
from vlarl.weights.folder import INDEX, REWARD_CARD, CheckpointError, weight_files
from vlarl.weights.merge import DTYPES, merged_tensors

_CONFIG = "config.json"


def export_checkpoint(
    base: Path,
    target: Path,
    weights: Mapping[str, Tensor],
    *,
    lora: LoraConfig | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    center_crop: bool | None = None,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Writes `base` with other weights; the folder is whole under its name, or not there.

    Every tensor keeps the data type that it has in `base`.

    Args:
        base: the checkpoint that training began with.
        target: folder to write; what is there is replaced.
        weights: trained tensors by their keys; with `lora` its factors "LAYER.A", "LAYER.B" among
            them.
        lora: the factors' scaling; none: `weights` are the weights.
        statistics: new ``norm_stats``, as OpenVLA replaces them; none: those of `base` stay.
        center_crop: whether frames are cropped where the policy acts; none: as in `base`.
        finish: adds to the folder before it appears under its name.

    Raises:
        NotFiniteError: a weight isn't finite.
        DiskFullError: there is no room. Either way `target` is as it was.
    """
    with durable_folder(target, checkpoint_bytes(base)) as folder:
        copy_but_weights(base, folder)
        if statistics:
            # It would win over config.json.
            (folder / STATISTICS).unlink(missing_ok=True)
        raw = json.loads((base / _CONFIG).read_bytes())
        raw |= {"norm_stats": dict(statistics)} if statistics else {}
        raw |= {} if center_crop is None else {"center_crop": center_crop}
        (folder / _CONFIG).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        tensors = _replaced(base, weights) if lora is None else _merged(base, weights, lora)
        save_tensors(folder, tensors)
        finish(folder)


def cast_checkpoint(source: Path, target: Path, dtype: str) -> None:
    """Writes `source` with its weights in another data type, each the nearest there is.

    Args:
        source: a checkpoint of a policy.
        target: folder to write; it is whole under its name, or not there.
        dtype: one of `merge.DTYPES`. Tensors of integers stay as they are.

    Raises:
        CheckpointError: a weight is beyond what the type can hold, or `source` is a reward model.
        DiskFullError: there is no room.
    """
    if (source / REWARD_CARD).exists():
        raise CheckpointError(
            f"{source} is a process reward model: its version and what it is worth were measured "
            "of these weights, so it keeps them"
        )
    with durable_folder(target, checkpoint_bytes(source)) as folder:
        copy_but_weights(source, folder)
        raw = json.loads((source / _CONFIG).read_bytes())
        # Loaders of transformers read which type to load; since its version 5 under a new name.
        for part in (raw, raw.get("text_config", {})):
            part.update({key: dtype for key in ("torch_dtype", "dtype") if key in part})
        (folder / _CONFIG).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        reader = CheckpointReader(source)
        tensors = ((key, _cast(source, key, reader.tensor(key), dtype)) for key in reader)
        save_tensors(folder, tensors)


def _cast(source: Path, key: str, tensor: Tensor, dtype: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    nearest = tensor.to(DTYPES[dtype])
    if nearest.isinf().any() and tensor.isfinite().all():
        raise CheckpointError(
            f"{source}: {key} has a weight of {tensor.abs().max():,.0f}, and {dtype} ends at "
            f"{torch.finfo(DTYPES[dtype]).max:,.0f}: take bfloat16 or float32"
        )
    return nearest


def checkpoint_bytes(base: Path) -> int:
    """What a checkpoint takes on disk, and one with the same tensors takes again."""
    return sum(path.stat().st_size for path in base.iterdir() if path.is_file())


def copy_but_weights(base: Path, folder: Path) -> None:
    """Copies a checkpoint's files, its weights apart."""
    weight_names = {path.name for path in weight_files(base)} | {INDEX}
    for path in base.iterdir():
        if path.is_file() and path.name not in weight_names:
            shutil.copyfile(path, folder / path.name)


def _replaced(base: Path, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    reader = CheckpointReader(base)
    for key in reader:
        stored = reader.tensor(key)
        yield key, weights[key].to(stored.dtype) if key in weights else stored


def _merged(
    base: Path, factors: Mapping[str, Tensor], lora: LoraConfig
) -> Iterator[tuple[str, Tensor]]:
    reader = CheckpointReader(base)
    layers = lora_layers(base)
    pairs = {layer: (factors[f"{layer}.A"], factors[f"{layer}.B"]) for layer in layers}
    dtype = reader.tensor(f"{next(iter(layers))}.weight").dtype
    yield from merged_tensors(base, layers, pairs, lora.alpha / lora.rank, dtype)
    changed = {f"{layer}.weight" for layer in layers}
    for key in reader:
        if key not in changed:
            stored = reader.tensor(key)
            yield key, factors[key].to(stored.dtype) if key in factors else stored
