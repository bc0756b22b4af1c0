"""An OpenVLA checkpoint: what it says, and what its observations, network and engine are made of.

Each part is imported when it is asked for, because torch and vLLM take a while to load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlarl.models.base import PolicyFamily
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.wholeness import check_openvla
from vlarl.models.spec import PolicySpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlarl.models.openvla.network import OpenVLA
    from vlarl.models.openvla.processor import Processor
    from vlarl.models.openvla.serving import TokenServing
    from vlarl.models.openvla.vision import TowerPixels


class OpenVLAFamily(PolicyFamily):
    """One checkpoint's."""

    engine_models: ClassVar = {
        "OpenVLAForActionPrediction": "vlarl.models.openvla.vllm_model:OpenVLAForActionPrediction"
    }
    reads_action_tokens: ClassVar = True

    def __init__(self, checkpoint: Path) -> None:
        """Reads the settings, no weights.

        Raises:
            ConfigError: a file is missing or can't be used; the message names it.
        """
        super().__init__(checkpoint)
        self.config = OpenVLAConfig.from_directory(checkpoint)

    @property
    def spec(self) -> PolicySpec:
        """Its observations and actions."""
        return self.config.spec

    @property
    def sizes(self) -> OpenVLAConfig:
        """Of towers, projector and language model."""
        return self.config

    def check(self) -> None:
        """Makes sure that the folder holds all of the checkpoint, and nothing else.

        Raises:
            ConfigError: its tokenizer can't be used, or it is a model of another kind.
            CheckpointError: its weights aren't whole, or don't fit its configuration.
        """
        check_openvla(self.checkpoint)

    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """The layers that LoRA may change, by their keys without ``.weight``, to (out, in)."""
        return lora_layers(self.config)

    def processor(self, center_crop: bool) -> Processor:
        """The way from observations to inputs, and between actions and tokens.

        Raises:
            ConfigError: the tokenizer is missing, broken or not Llama-like.
        """
        from vlarl.models.openvla.processor import Processor

        return Processor(self.checkpoint, self.config, center_crop)

    def network(self, dtype: torch.dtype, device: torch.device) -> OpenVLA:
        """The network in torch, in evaluation mode.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape.
        """
        from vlarl.models.openvla.network import load_model

        return load_model(self.checkpoint, dtype, device)

    def tower_pixels(self) -> TowerPixels:
        """From a frame's levels to the network's `pixel_values`, in torch.

        Raises:
            ConfigError: the numbers are missing or can't be used.
        """
        from vlarl.models.openvla.vision import TowerPixels

        return TowerPixels(self.checkpoint)

    def verdict_ids(self) -> tuple[int, int]:
        """The ids by which a reward model says that an action leads nowhere, or somewhere.

        Raises:
            ConfigError: the vocabulary has neither these words nor single bytes.
        """
        from vlarl.models.openvla.prompt import PromptBuilder

        return PromptBuilder(self.checkpoint).verdict_ids

    def imitation_losses(
        self,
        logits: Tensor,
        bins: Tensor,
        counted: Tensor,  # noqa: ARG002 - all of one action count
        targets: Tensor,
    ) -> Tensor:
        """Cross-entropy over the action ids: [B]; arguments as `PolicyFamily` has them."""
        from vlarl.models.openvla.losses import action_loss

        return action_loss(logits, bins, targets)

    def serving(self) -> TokenServing:
        """How vLLM runs it."""
        from vlarl.models.openvla.serving import TokenServing

        return TokenServing(self.config)
