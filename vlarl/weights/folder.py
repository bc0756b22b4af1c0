"""The files of a checkpoint's folder, looked for without torch."""

from __future__ import annotations

import os
from pathlib import Path

from vlarl.errors import FatalError
from vlarl.invocation import invocation
from vlarl.models.openvla.config import ConfigError, OpenVLAConfig, configuration_of, read_json
from vlarl.weights.whereabouts import folder_fault, no_weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
POLICY = "policy"
"""Folder in another kind of judge's checkpoint: the configuration of the policy it judges."""
REWARD_CARD = "reward_model.json"
"""Makes a checkpoint a process reward model: its version, how it was made, what it is worth."""


class CheckpointError(FatalError, ValueError):
    """A checkpoint's weights are missing, broken, or don't fit its configuration."""


def is_openvla(directory: Path) -> bool:
    """Whether a folder's model is an OpenVLA; False: it is a model of another kind.

    Raises:
        ConfigError: there is no such folder, or it doesn't say.
    """
    path = configuration_of(directory)
    try:
        return bool(read_json(path)["model_type"] == "openvla")
    except KeyError as error:
        raise ConfigError(f"{path} names no model_type") from error


def index_of(directory: Path) -> dict[str, str]:
    """The file of each tensor by the index; empty where there is none.

    Raises:
        CheckpointError: the index can't be read.
    """
    index = directory / INDEX
    if not os.path.lexists(index):
        return {}
    try:
        return {str(key): Path(name).name for key, name in read_json(index)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise CheckpointError(str(error)) from error
        raise CheckpointError(f"cannot read {index}: {error!r}") from error


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, sorted.

    Raises:
        CheckpointError: there are none, or the index can't be read.
    """
    # A link to nowhere counts as there: whoever opens it says which.
    if os.path.lexists(directory / INDEX):
        return sorted(directory / name for name in set(index_of(directory).values()))
    if os.path.lexists(directory / SINGLE):
        return [directory / SINGLE]
    raise CheckpointError(no_weights(directory))


def judged_policy(directory: Path) -> OpenVLAConfig:
    """The policy that another kind of judge judges.

    Raises:
        ConfigError: its configuration is missing or can't be used.
    """
    if not os.path.lexists(directory / POLICY):
        raise ConfigError(
            f"{directory} is no judge: {POLICY}/, which says what its policy's action tokens are, "
            "is missing"
        )
    return OpenVLAConfig.from_directory(directory / POLICY)


def reward_model_version(directory: Path) -> str:
    """The version that a reward model's card names.

    Raises:
        ConfigError: the folder holds no reward model.
    """
    card = directory / REWARD_CARD
    if fault := folder_fault(directory):
        raise ConfigError(fault)
    if not os.path.lexists(card):
        raise ConfigError(
            f"{directory} is no reward model ({REWARD_CARD} is missing): `{invocation()} reward "
            "train` makes one"
        )
    try:
        return str(read_json(card)["version"])
    except KeyError as error:
        raise ConfigError(f"{card} names no version") from error
