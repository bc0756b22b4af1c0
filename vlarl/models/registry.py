"""Which model a folder holds, and whether it can be loaded."""

from __future__ import annotations

import os
from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.wholeness import check_openvla, check_weights
from vlarl.weights.folder import configuration_of, read_json, reward_model_version

POLICY = "policy"
"""Folder of a reward model that is no OpenVLA: the configuration of the policy that it scores."""


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


def scored_policy(directory: Path) -> OpenVLAConfig:
    """The policy whose actions are scored by a reward model that is no OpenVLA.

    Raises:
        ConfigError: its configuration is missing or can't be used.
    """
    if not os.path.lexists(directory / POLICY):
        raise ConfigError(
            f"{directory} is no reward model: {POLICY}/, which says what its policy's action "
            "tokens are, is missing"
        )
    return OpenVLAConfig.from_directory(directory / POLICY)


def check_any(directory: Path) -> None:
    """`check_openvla`, or of a model of another kind whether its weights are whole.

    Raises:
        ConfigError, CheckpointError: something is missing or can't be used.
    """
    if is_openvla(directory):
        check_openvla(directory)
    else:
        check_weights(directory)


def check_reward_model(directory: Path) -> str:
    """`check_any` of a reward model; returns the version that its card names.

    Raises:
        ConfigError, CheckpointError: it is none, or something is missing or can't be used.
    """
    version = reward_model_version(directory)
    check_any(directory)
    if is_openvla(directory):
        from vlarl.models.openvla.prompt import PromptBuilder

        _ = PromptBuilder(directory).verdict_ids
    else:
        scored_policy(directory)
    return version
