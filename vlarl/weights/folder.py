"""The files of a checkpoint's folder, looked for without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vlarl.errors import ConfigError, FatalError
from vlarl.invocation import invocation
from vlarl.weights.whereabouts import folder_fault, no_configuration, no_weights, pointer_sentence

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FAMILY_FILE = "family.json"
"""Names a checkpoint's policy family, as ``config.json`` says OpenVLA in all of them."""
REWARD_CARD = "reward_model.json"
"""Makes a checkpoint a process reward model: its version, how it was made, what it is worth."""


class CheckpointError(FatalError, ValueError):
    """A checkpoint's weights are missing, broken, or don't fit its configuration."""


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


def configuration_of(directory: Path) -> Path:
    """The config.json of a checkpoint's folder.

    Raises:
        ConfigError: there is no such folder, nobody may look into it, or it has none.
    """
    if fault := folder_fault(directory):
        raise ConfigError(fault)
    path = directory / "config.json"
    if not os.path.lexists(path):
        raise ConfigError(no_configuration(directory))
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object that a checkpoint's JSON file holds, with or without a byte-order mark.

    Raises:
        ConfigError: it is missing, a Git LFS pointer, or no JSON object.
    """
    if pointer := pointer_sentence(path):
        raise ConfigError(pointer)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return content
