"""Every tensor of an OpenVLA-OFT's state dict, and its shape, from the configuration alone."""

from __future__ import annotations

from vlarl.models.openvla.tensors import Shapes
from vlarl.models.openvla.tensors import stored_tensors as stored_by_openvla
from vlarl.models.openvla_oft.config import OFTConfig

PROJECTOR = "proprio_projector."
"""How the keys of the projector of proprioception begin."""


def stored_tensors(config: OFTConfig) -> Shapes:
    """Shapes of all tensors: OpenVLA's, and of a policy that reads proprioception its projector."""
    shapes, proprio = stored_by_openvla(config.base), config.spec.proprio_dim
    if proprio:
        width = config.base.text.hidden_size
        for name, into in (("fc1", proprio), ("fc2", width)):
            shapes[f"{PROJECTOR}{name}.weight"] = (width, into)
            shapes[f"{PROJECTOR}{name}.bias"] = (width,)
    return shapes
