"""Whether a checkpoint's weights are whole, by the headers of their files, whatever its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vlarl.weights.folder import CheckpointError, index_of, weight_files
from vlarl.weights.headers import StoredTensor, read_header

_TYPES = {"F64", "F32", "F16", "BF16"}
_COUNTS = {"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"}
_NAMED = 3


def check_weights(directory: Path) -> dict[str, StoredTensor]:
    """All tensors by the headers of the files that hold them.

    Raises:
        CheckpointError: files or tensors are missing, cut short, pickled, quantised, or of an
            adapter.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        tensors |= read_header(path)
    missing = sorted(set(index_of(directory)) - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{directory}: the index names tensors that are in none of its files: "
            f"{some_of(missing)}"
        )
    _check_merged(directory, tensors)
    check_types(directory, {key: one for key, one in tensors.items() if _is_weight(key, one)})
    return tensors


def _is_weight(key: str, stored: StoredTensor) -> bool:
    """Whether a tensor may not be of integers: positions, counts and masks may."""
    return stored.dtype not in _COUNTS or "weight" in key.rpartition(".")[2]


def check_types(directory: Path, weights: Mapping[str, StoredTensor]) -> None:
    """Makes sure that weights are floating-point numbers.

    Raises:
        CheckpointError: one is quantised.
    """
    for key, stored in weights.items():
        if stored.dtype not in _TYPES:
            raise CheckpointError(
                f"{directory}: weights are quantised ({key} is {stored.dtype}): take the "
                "checkpoint in bfloat16 or float32"
            )


def _check_merged(directory: Path, keys: Iterable[str]) -> None:
    ours = [
        key
        for key in keys
        if key.startswith("base_model.model.") or ".lora_A." in key or ".base_layer." in key
    ]
    if ours:
        raise CheckpointError(
            f"{directory}: the weights still have their adapter beside them ({ours[0]}): load the "
            "model with PEFT, merge_and_unload(), save_pretrained(OUT), and name OUT"
        )


def some_of(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
