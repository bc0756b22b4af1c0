"""Whether a checkpoint can be loaded, found out in a moment: every command asks before it starts.

Headers are read, not weights: 15 GB take no longer than a tiny model's. torch isn't needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.oft import oft_sign
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.tensors import stored_tensors
from vlarl.weights.folder import (
    CheckpointError,
    index_of,
    read_json,
    weight_files,
)
from vlarl.weights.headers import StoredTensor, read_header

_TYPES = {"F64", "F32", "F16", "BF16"}
_COUNTS = {"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"}
_NAMED = 3
_TOKENIZER = "tokenizer.json"


def check_openvla(directory: Path) -> OpenVLAConfig:
    """Makes sure that a folder holds all of an OpenVLA checkpoint, and nothing else.

    Raises:
        ConfigError: there is no such folder, its settings or its tokenizer can't be used, or it is
            a model of another kind.
        CheckpointError: its weights aren't whole, or don't fit its configuration.
    """
    config = check_settings(directory)
    _check_tensors(directory, config, check_weights(directory))
    return config


def check_settings(directory: Path) -> OpenVLAConfig:
    """`check_openvla` without the weights.

    Raises:
        ConfigError: as there.
    """
    config = OpenVLAConfig.from_directory(directory)
    if sign := oft_sign(directory, read_json(directory / "config.json")):
        raise ConfigError(
            f"{directory} is OpenVLA-OFT ({sign}), which isn't supported yet: it answers whole "
            "chunks of actions in one pass that sees all tokens, and run as plain OpenVLA, which "
            "has the same weights' names, it would succeed in about 0 % of its episodes"
        )
    normalizer = PixelNormalizer.from_directory(directory)
    if len(normalizer.mean) != len(config.towers):
        raise ConfigError(
            f"{directory / 'preprocessor_config.json'}: tvf_normalize_params are for "
            f"{len(normalizer.mean)} towers, config.json names {len(config.towers)}"
        )
    _check_tokenizer(directory)
    return config


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
            f"{directory}: the index names tensors that are in none of its files: {_some(missing)}"
        )
    _check_merged(directory, tensors)
    _check_types(directory, {key: one for key, one in tensors.items() if _is_weight(key, one)})
    return tensors


def _is_weight(key: str, stored: StoredTensor) -> bool:
    """Whether a tensor may not be of integers: positions, counts and masks may."""
    return stored.dtype not in _COUNTS or "weight" in key.rpartition(".")[2]


def _check_types(directory: Path, weights: Mapping[str, StoredTensor]) -> None:
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


def _check_tensors(
    directory: Path, config: OpenVLAConfig, tensors: Mapping[str, StoredTensor]
) -> None:
    wanted = stored_tensors(config)
    stored = {key for key in tensors if not key.endswith("rotary_emb.inv_freq")}
    if missing := sorted(wanted.keys() - stored):
        raise CheckpointError(f"{directory}: weights are missing: {_some(missing)}")
    if unknown := sorted(stored - wanted.keys()):
        raise CheckpointError(f"{directory}: weights that OpenVLA hasn't: {_some(unknown)}")
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{directory}: {key} is {list(tensors[key].shape)}, by config.json {list(shape)}"
            )
    _check_types(directory, {key: tensors[key] for key in wanted})


def _check_tokenizer(directory: Path) -> None:
    from vlarl.models.openvla.prompt import PromptBuilder

    if not (directory / _TOKENIZER).exists():
        spm = "; tokenizer.model alone isn't read" * (directory / "tokenizer.model").exists()
        raise ConfigError(
            f"checkpoint {directory} is incomplete: {_TOKENIZER} is missing{spm}: copy it from "
            "openvla/openvla-7b, whose tokenizer all OpenVLA have"
        )
    PromptBuilder(directory)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
