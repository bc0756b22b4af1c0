"""An OpenVLA-OFT checkpoint: what it says, and what its observations, network and engine are made
of.

Each part is imported when it is asked for, because torch and vLLM take a while to load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlarl.models.base import PolicyFamily
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.wholeness import check_openvla_oft
from vlarl.models.spec import PolicySpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlarl.models.openvla.vision import TowerPixels
    from vlarl.models.openvla_oft.network import OpenVLAOFT
    from vlarl.models.openvla_oft.processor import ChunkProcessor
    from vlarl.models.openvla_oft.serving import ChunkServing


class OFTFamily(PolicyFamily):
    """One checkpoint's."""

    engine_models: ClassVar = {
        "OpenVLAOFTForActionPrediction": (
            "vlarl.models.openvla_oft.vllm_model:OpenVLAOFTForActionPrediction"
        )
    }

    new_prefixes: ClassVar = ("proprio_projector.",)
    reads_action_tokens: ClassVar = False

    def __init__(self, checkpoint: Path) -> None:
        """Reads the settings, no weights.

        Raises:
            ConfigError: a file is missing or can't be used; the message names it.
        """
        super().__init__(checkpoint)
        self.config = OFTConfig.from_directory(checkpoint)

    @property
    def spec(self) -> PolicySpec:
        """Its observations and actions."""
        return self.config.spec

    @property
    def sizes(self) -> OpenVLAConfig:
        """Of towers, projector and language model, which are OpenVLA's."""
        return self.config.base

    def check(self) -> None:
        """Makes sure that the folder holds all of the checkpoint, and nothing else.

        Raises:
            ConfigError: its tokenizer can't be used, or it is a model of another kind.
            CheckpointError: its weights aren't whole, or don't fit its configuration.
        """
        check_openvla_oft(self.checkpoint, self.config)

    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """The layers that LoRA may change: OpenVLA's. The projector of proprioception isn't one of
        them, as in the originals.
        """
        return lora_layers(self.config.base)

    def processor(self, center_crop: bool) -> ChunkProcessor:
        """The way from observations to inputs, and between chunks and tokens.

        Raises:
            ConfigError: the tokenizer is missing, broken or not Llama-like.
        """
        from vlarl.models.openvla_oft.processor import ChunkProcessor

        return ChunkProcessor(self.checkpoint, self.config, center_crop)

    def network(self, dtype: torch.dtype, device: torch.device) -> OpenVLAOFT:
        """The network in torch, in evaluation mode.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape.
        """
        from vlarl.models.openvla_oft.network import load_model

        return load_model(self.checkpoint, dtype, device)

    def tower_pixels(self) -> TowerPixels:
        """From frames' levels to one image's part of `pixel_values`, in torch.

        Raises:
            ConfigError: the numbers are missing or can't be used.
        """
        from vlarl.models.openvla.vision import TowerPixels

        return TowerPixels(self.checkpoint)

    def imitation_losses(
        self, logits: Tensor, bins: Tensor, counted: Tensor, targets: Tensor
    ) -> Tensor:
        """Cross-entropy over the vocabulary, stop among the targets: [B]; arguments as
        `PolicyFamily` has them.
        """
        from vlarl.models.openvla_oft.losses import softened_losses

        return softened_losses(logits, bins, counted, targets, self.spec.action_ids.start)

    def serving(self) -> ChunkServing:
        """How vLLM runs it."""
        from vlarl.models.openvla_oft.serving import ChunkServing

        return ChunkServing(self.config)
