"""The files of a checkpoint's folder, looked for without torch."""

from __future__ import annotations

import json
from pathlib import Path

from vlarl.errors import FatalError
from vlarl.invocation import invocation
from vlarl.openvla.config import ConfigError, OpenVLAConfig
from vlarl.openvla.images import PixelNormalizer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
REWARD_CARD = "reward_model.json"
"""Makes a checkpoint a process reward model: its version, how it was made, what it is worth."""


class CheckpointError(FatalError, ValueError):
    """A checkpoint's weights are missing, broken, or don't fit its configuration."""


def is_openvla(directory: Path) -> bool:
    """Whether a folder's model is an OpenVLA; False: it is a model of another kind.

    Raises:
        ConfigError: there is no such folder, or it doesn't say.
    """
    path = directory / "config.json"
    if directory.is_dir():
        try:
            return bool(json.loads(path.read_bytes())["model_type"] == "openvla")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} can't be read: {error!r}") from error
    OpenVLAConfig.from_directory(directory)  # says what is to be done
    raise AssertionError


def check_folder(directory: Path) -> None:
    """Makes sure that a folder holds all files of a checkpoint, for who starts processes with it.

    Raises:
        ConfigError: there is no such folder, or its settings can't be read.
        CheckpointError: its weights or its tokenizer are missing.
    """
    OpenVLAConfig.from_directory(directory)
    PixelNormalizer.from_directory(directory)
    for path in (*weight_files(directory), directory / "tokenizer.json"):
        if not path.is_file():
            raise CheckpointError(f"checkpoint {directory} is incomplete: {path.name} is missing")


def check_whole(directory: Path) -> None:
    """`check_folder` for an OpenVLA; of a model of another kind, whether it has weights at all.

    Raises:
        ConfigError, CheckpointError: something is missing.
    """
    if is_openvla(directory):
        check_folder(directory)
    for path in weight_files(directory):
        if not path.is_file():
            raise CheckpointError(f"checkpoint {directory} is incomplete: {path.name} is missing")


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, sorted.

    Raises:
        CheckpointError: there are none, or the index can't be read.
    """
    index = directory / INDEX
    if index.exists():
        try:
            weight_map = json.loads(index.read_bytes())["weight_map"]
            return sorted(directory / Path(name).name for name in set(weight_map.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read {index}: {error!r}") from error
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}")


def reward_model_version(directory: Path) -> str:
    """The version that a reward model's card names.

    Raises:
        ConfigError: the folder holds no reward model.
    """
    card = directory / REWARD_CARD
    try:
        return str(json.loads(card.read_bytes())["version"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"{directory} is no reward model ({REWARD_CARD} is missing): `{invocation()} reward "
            "train` makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{card} can't be read: {error!r}") from error
