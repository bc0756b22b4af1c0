"""Every tensor of an OpenVLA-OFT's state dict, and its shape, from the configuration alone."""

from __future__ import annotations

from vlarl.models.openvla.tensors import Shapes
from vlarl.models.openvla.tensors import stored_tensors as stored_by_openvla
from vlarl.models.openvla_oft.config import OFTConfig


def stored_tensors(config: OFTConfig) -> Shapes:
    """Shapes of all tensors: OpenVLA's, and of a policy that reads proprioception its projector."""
    return stored_by_openvla(config.base) | projector_tensors(config)


def projector_tensors(config: OFTConfig) -> Shapes:
    """Shapes of the projector of proprioception; {} where the policy reads none."""
    proprio, width = config.spec.proprio_dim, config.base.text.hidden_size
    shapes: Shapes = {}
    for name, into in (("fc1", proprio), ("fc2", width)):
        shapes[f"proprio_projector.{name}.weight"] = (width, into)
        shapes[f"proprio_projector.{name}.bias"] = (width,)
    return shapes if proprio else {}
