"""OpenVLA inside vLLM: our vision towers and projector, vLLM's Llama."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from vlarl.models.openvla.backbone import Projector, VisionBackbone
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.vision import TowerPixels
from vlarl.models.openvla.vllm_inputs import DummyInputs, EngineProcessor, ProcessingInfo


@MULTIMODAL_REGISTRY.register_processor(
    EngineProcessor, info=ProcessingInfo, dummy_inputs=DummyInputs
)
class OpenVLAForActionPrediction(nn.Module, SupportsMultiModal):  # type: ignore[misc]
    """The original checkpoints' model, sized by the checkpoint's configuration."""

    # vLLM fuses these layers of the checkpoint into one.
    packed_modules_mapping: dict[str, list[str]] = {  # noqa: RUF012 - vLLM's name and type
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        checkpoint = vllm_config.model_config.model
        config = OpenVLAConfig.from_directory(checkpoint)
        self.pixels = TowerPixels(checkpoint)
        with self._mark_tower_model(vllm_config, "image"):  # type: ignore[operator]
            self.vision_backbone = VisionBackbone(config)
            self.projector = Projector(config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=vllm_config.model_config.hf_config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:  # noqa: ARG003
        """None: image tokens are put into the prompt by id, never by text."""
        return None

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Image features in the language model's space.

        Args:
            kwargs: `pixels`, uint8 [B, S, S, 3].

        Returns:
            [B, image tokens, hidden size], in the model's data type.
        """
        pixels = kwargs["pixels"]
        assert isinstance(pixels, torch.Tensor)  # noqa: S101 - the only input we ever send
        features: torch.Tensor = self.projector(self.vision_backbone(self.pixels(pixels)))
        return features

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Hidden states of the language model."""
        hidden: torch.Tensor = self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits over the whole vocabulary."""
        logits: torch.Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which children are language model, connector and tower."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="projector", tower_model="vision_backbone"
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads tensors by the original checkpoint's names."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
