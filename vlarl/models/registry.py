"""Which model a folder holds, and whether it can be loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.models.base import PolicyFamily
from vlarl.models.openvla.family import OpenVLAFamily
from vlarl.models.openvla.oft import OPENVLA, OPENVLA_OFT, named_family
from vlarl.models.openvla_oft.family import OFTFamily
from vlarl.models.spec import PolicySpec
from vlarl.weights.folder import FAMILY_FILE, configuration_of, read_json, reward_model_version
from vlarl.weights.wholeness import check_weights

FAMILIES: Mapping[str, type[PolicyFamily]] = {OPENVLA: OpenVLAFamily, OPENVLA_OFT: OFTFamily}
"""By the names that ``family.json`` has for them."""

ENGINE_MODELS = {
    name: module for family in FAMILIES.values() for name, module in family.engine_models.items()
}
"""vLLM's names of all families' architectures to our modules and classes."""

POLICY = "policy"
"""Folder in a reward model that is no OpenVLA, with the configuration of the policy it scores."""

__all__ = [
    "ENGINE_MODELS",
    "FAMILIES",
    "POLICY",
    "check_any",
    "check_family_name",
    "check_policy_checkpoint",
    "check_reward_model",
    "is_openvla",
    "lora_layers",
    "policy_family",
    "policy_spec",
    "scored_policy",
]


def policy_family(directory: str | Path) -> PolicyFamily:
    """A policy's checkpoint, with everything that depends on which policy it is.

    A folder that has ``family.json`` is of the family that it names, any other is OpenVLA's.

    Raises:
        ConfigError: a file is missing or can't be used; the message names it.
    """
    directory = Path(directory)
    return FAMILIES[check_family_name(directory)](directory)


def check_family_name(directory: Path) -> str:
    """The name of a folder's policy family; see `policy_family`.

    Raises:
        ConfigError: there is no such family, or ``family.json`` can't be read.
    """
    name = named_family(directory)
    if name not in FAMILIES:
        raise ConfigError(
            f"{directory / FAMILY_FILE}: family is {name!r}; known: {', '.join(FAMILIES)}"
        )
    return name


def policy_spec(directory: str | Path) -> PolicySpec:
    """A policy's observations and actions.

    Raises:
        ConfigError: a file is missing or can't be used; the message names it.
    """
    return policy_family(directory).spec


def lora_layers(directory: str | Path) -> dict[str, tuple[int, int]]:
    """The layers of a policy's checkpoint that LoRA may change, by their keys without
    ``.weight``, to (out, in).

    Raises:
        ConfigError: a file is missing or can't be used; the message names it.
    """
    return policy_family(directory).lora_layers()


def check_policy_checkpoint(directory: Path) -> PolicySpec:
    """Makes sure that a folder holds all of a policy's checkpoint, and nothing else.

    Raises:
        ConfigError: there is no such folder, its settings or its tokenizer can't be used, or it is
            a model of another kind.
        CheckpointError: its weights aren't whole, or don't fit its configuration.
    """
    family = policy_family(directory)
    family.check()
    return family.spec


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


def scored_policy(directory: Path) -> PolicySpec:
    """The policy whose actions are scored by a reward model that is no OpenVLA.

    Raises:
        ConfigError: its configuration is missing or can't be used.
    """
    if not os.path.lexists(directory / POLICY):
        raise ConfigError(
            f"{directory} is no reward model: {POLICY}/, which says what its policy's action "
            "tokens are, is missing"
        )
    return policy_spec(directory / POLICY)


def check_any(directory: Path) -> None:
    """Checks an OpenVLA by `check_policy_checkpoint`, any other model by whether its weights are
    whole.

    Raises:
        ConfigError, CheckpointError: something is missing or can't be used.
    """
    if is_openvla(directory):
        check_policy_checkpoint(directory)
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
        policy_family(directory).verdict_ids()
    else:
        scored_policy(directory)
    return version
