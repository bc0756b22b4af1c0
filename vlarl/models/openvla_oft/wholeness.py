"""Whether a checkpoint can be loaded, found out in a moment; see OpenVLA's `wholeness`."""

from __future__ import annotations

from pathlib import Path

from vlarl.models.openvla.wholeness import check_preparation, check_stored
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.tensors import stored_tensors
from vlarl.weights.wholeness import check_weights


def check_openvla_oft(directory: Path, config: OFTConfig) -> None:
    """Makes sure that a folder holds all of an OpenVLA-OFT checkpoint, and nothing else.

    Raises:
        ConfigError: its settings or its tokenizer can't be used.
        CheckpointError: its weights aren't whole, or don't fit its configuration.
    """
    check_preparation(directory, config.base)
    check_stored(directory, "OpenVLA-OFT", stored_tensors(config), check_weights(directory))
