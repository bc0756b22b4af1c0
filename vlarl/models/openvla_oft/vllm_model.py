"""OpenVLA-OFT inside vLLM: OpenVLA's model there, with full attention, and a pooler at its end."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.interfaces_base import attn_type
from vllm.multimodal import MULTIMODAL_REGISTRY

from vlarl.models.openvla.vllm_inputs import DummyInputs
from vlarl.models.openvla.vllm_model import OpenVLAForActionPrediction
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.network import ProprioProjector
from vlarl.models.openvla_oft.vllm_inputs import ChunkEngineProcessor, ChunkProcessingInfo
from vlarl.models.openvla_oft.vllm_pooler import ChunkPooler


@attn_type("encoder_only")
@MULTIMODAL_REGISTRY.register_processor(
    ChunkEngineProcessor, info=ChunkProcessingInfo, dummy_inputs=DummyInputs
)
class OpenVLAOFTForActionPrediction(OpenVLAForActionPrediction):
    """The same towers, projector and Llama, by the same names in a checkpoint."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = OFTConfig.from_directory(vllm_config.model_config.model)
        self._action_ids = config.spec.action_ids
        self._placeholder_id = config.placeholder_id
        if config.spec.proprio_dim:
            width = config.base.text.hidden_size
            self.proprio_projector = ProprioProjector(config.spec.proprio_dim, width)
        stop = int(config.convention == "stop")
        self.pooler = ChunkPooler(self.action_logits, config.spec.tokens, behind=stop)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Features of all images, and of proprioception, in the language model's space.

        Args:
            kwargs: `pixels`, uint8 [B, I, S, S, 3]; `proprio`, float32 [B, P], where it is read.

        Returns:
            [B, tokens, hidden size], in the model's data type.
        """
        pixels, proprio = kwargs["pixels"], kwargs.get("proprio")
        assert isinstance(pixels, torch.Tensor)  # noqa: S101 - the only input we ever send
        each = super().embed_multimodal(pixels=pixels.flatten(0, 1))
        features: torch.Tensor = each.reshape(len(pixels), -1, each.shape[-1])
        if isinstance(proprio, torch.Tensor):
            features = torch.cat([features, self.proprio_projector(proprio)], dim=1)
        return features

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The language model's input [T, d]: OpenVLA's, and placeholders that are zero."""
        embedded: torch.Tensor = super().embed_input_ids(
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded.masked_fill((input_ids == self._placeholder_id)[:, None], 0.0)

    def action_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final-norm hidden states [..., d] -> float32 [..., 256]: only the action ids' rows."""
        rows = self.language_model.lm_head.weight[self._action_ids.start : self._action_ids.stop]
        return F.linear(hidden, rows).float()
