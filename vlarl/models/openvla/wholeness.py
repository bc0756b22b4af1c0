"""Whether a checkpoint can be loaded, found out in a moment: every command asks before it starts.

Headers are read, not weights: 15 GB take no longer than a tiny model's. torch isn't needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.oft import oft_sign, stated_chunk
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.tensors import Shapes, stored_tensors
from vlarl.weights.folder import CheckpointError, read_json
from vlarl.weights.headers import StoredTensor
from vlarl.weights.whereabouts import is_oft
from vlarl.weights.wholeness import check_types, check_weights, some_of

_TOKENIZER = "tokenizer.json"


def check_openvla(directory: Path) -> OpenVLAConfig:
    """Makes sure that a folder holds all of an OpenVLA checkpoint, and nothing else.

    Raises:
        ConfigError: there is no such folder, its settings or its tokenizer can't be used, or it is
            a model of another kind.
        CheckpointError: its weights aren't whole, or don't fit its configuration.
    """
    config = check_settings(directory)
    check_stored(directory, "OpenVLA", stored_tensors(config), check_weights(directory))
    return config


def check_settings(directory: Path) -> OpenVLAConfig:
    """`check_openvla` without the weights.

    Raises:
        ConfigError: as there.
    """
    config = OpenVLAConfig.from_directory(directory)
    raw = read_json(directory / "config.json")
    if sign := oft_sign(directory, raw):
        raise ConfigError(is_oft(directory, sign, stated_chunk(directory, raw)))
    check_preparation(directory, config)
    return config


def check_preparation(directory: Path, config: OpenVLAConfig) -> None:
    """Makes sure that frames and instructions can be prepared for the network.

    Raises:
        ConfigError: the numbers that frames are normalised by, or the tokenizer, can't be used.
    """
    normalizer = PixelNormalizer.from_directory(directory)
    if len(normalizer.mean) != len(config.towers):
        raise ConfigError(
            f"{directory / 'preprocessor_config.json'}: tvf_normalize_params are for "
            f"{len(normalizer.mean)} towers, config.json names {len(config.towers)}"
        )
    _check_tokenizer(directory)


def check_stored(
    directory: Path, family: str, wanted: Shapes, tensors: Mapping[str, StoredTensor]
) -> None:
    """Makes sure that weights are what a network needs.

    Args:
        directory: the checkpoint.
        family: of the network, for people.
        wanted: shapes of its tensors.
        tensors: those that the folder holds.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or type.
    """
    stored = {key for key in tensors if not key.endswith("rotary_emb.inv_freq")}
    if missing := sorted(wanted.keys() - stored):
        raise CheckpointError(f"{directory}: weights are missing: {some_of(missing)}")
    if unknown := sorted(stored - wanted.keys()):
        raise CheckpointError(f"{directory}: weights that {family} hasn't: {some_of(unknown)}")
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{directory}: {key} is {list(tensors[key].shape)}, by config.json {list(shape)}"
            )
    check_types(directory, {key: tensors[key] for key in wanted})


def _check_tokenizer(directory: Path) -> None:
    from vlarl.models.openvla.prompt import PromptBuilder

    if not (directory / _TOKENIZER).exists():
        spm = "; tokenizer.model alone isn't read" * (directory / "tokenizer.model").exists()
        raise ConfigError(
            f"checkpoint {directory} is incomplete: {_TOKENIZER} is missing{spm}: copy it from "
            "openvla/openvla-7b, whose tokenizer all OpenVLA have"
        )
    PromptBuilder(directory)
