"""Whether a checkpoint can be loaded, found out in a moment; see OpenVLA's `wholeness`."""

from __future__ import annotations

from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.invocation import invocation
from vlarl.models.openvla.oft import oft_heads
from vlarl.models.openvla.wholeness import check_preparation, check_stored
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.tensors import projector_tensors, stored_tensors
from vlarl.weights.folder import FAMILY_FILE, CheckpointError
from vlarl.weights.whereabouts import is_oft, useless_head
from vlarl.weights.wholeness import check_weights


def check_openvla_oft(directory: Path, config: OFTConfig) -> None:
    """Makes sure that a folder holds all of an OpenVLA-OFT checkpoint, and nothing else.

    Raises:
        ConfigError: its settings or its tokenizer can't be used, it has a head without
            log-probs, or its vocabulary has no room for the engine's placeholders.
        CheckpointError: its weights aren't whole, or don't fit its configuration.
    """
    check_settings(directory, config)
    tensors = check_weights(directory)
    beside = oft_heads(directory)
    if beside and not projector_tensors(config).keys() & tensors.keys():
        raise CheckpointError(
            f"{directory}: what projects its proprioception is in {beside}, which no command "
            f"loads: `{invocation()} checkpoint adopt {directory} OUT` puts it among the weights"
        )
    check_stored(directory, "OpenVLA-OFT", stored_tensors(config), tensors)


def check_settings(directory: Path, config: OFTConfig) -> None:
    """`check_openvla_oft` without the weights.

    Raises:
        ConfigError: as there.
    """
    beside = oft_heads(directory)
    if useless_head(beside):
        raise ConfigError(is_oft(directory, beside))
    if beside and not config.spec.proprio_dim:
        raise ConfigError(
            f"{directory / FAMILY_FILE}: it names no proprio, and the policy was trained with it "
            f"({beside}): write how many numbers it reads (LIBERO: 8)"
        )
    if no_room := config.no_room():
        raise ConfigError(f"{directory}: {no_room}")
    check_preparation(directory, config.base)
