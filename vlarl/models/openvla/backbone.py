"""What both OpenVLA families compute with: towers, projector, Llama, and how weights get in.

    frame -> DINOv2 -+
                     +- concatenated channels -> projector -> image tokens
    frame -> SigLIP -+

How the image's tokens and the text are put together and read differs: see each one's `network`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlarl.models.network import PolicyNetwork
from vlarl.models.openvla.config import OpenVLAConfig, TextConfig
from vlarl.models.openvla.tensors import unused_prefixes
from vlarl.models.openvla.vision import VisionTransformer
from vlarl.weights.checkpoint import CheckpointReader
from vlarl.weights.folder import CheckpointError


class VisionBackbone(nn.Module):
    """One or two towers over the same image; their features concatenated on channels."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(config.towers[0])
        self.fused_featurizer = (
            VisionTransformer(config.towers[1]) if len(config.towers) == 2 else None
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels [B, 3 * towers, S, S] -> features [B, patches, sum of the towers' dims], in the
        weights' type.
        """
        pixel_values = pixel_values.to(self.featurizer.pos_embed.dtype)
        if self.fused_featurizer is None:
            single: Tensor = self.featurizer(pixel_values)
            return single
        first, second = pixel_values[:, :3], pixel_values[:, 3:]
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class Projector(nn.Module):
    """Vision features to the language model's width, with the exact GELU between the layers.

    Three layers (through four times the vision width) after two towers, two after one.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        vision = sum(tower.embed_dim for tower in config.towers)
        text = config.text.hidden_size
        if len(config.towers) == 1:
            self.fc1, self.fc2 = nn.Linear(vision, text), nn.Linear(text, text)
            self.fc3: nn.Linear | None = None
        else:
            self.fc1 = nn.Linear(vision, 4 * vision)
            self.fc2, self.fc3 = nn.Linear(4 * vision, text), nn.Linear(text, text)

    def forward(self, features: Tensor) -> Tensor:
        """[B, patches, vision width] -> [B, patches, d]."""
        hidden: Tensor = self.fc2(F.gelu(self.fc1(features)))
        return hidden if self.fc3 is None else self.fc3(F.gelu(hidden))


class ImageEncoder(nn.Module):
    """Towers and projector, by the names that they have in the policy."""

    def __init__(self, vision_backbone: VisionBackbone, projector: Projector) -> None:
        super().__init__()
        self.vision_backbone = vision_backbone
        self.projector = projector

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """The image as the language model reads it: [B, patches, d]."""
        tokens: Tensor = self.projector(self.vision_backbone(pixel_values))
        return tokens


class VisionLanguageModel(ImageEncoder, PolicyNetwork):
    """An image encoder and a Llama, of which the action ids' logits are asked for."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(VisionBackbone(config), Projector(config))
        self.config = config
        self.language_model = LlamaForCausalLM(llama_config(config.text))

    @property
    def feature_width(self) -> int:
        """d, the width of hidden states and image tokens."""
        return self.config.text.hidden_size

    @property
    def patches(self) -> int:
        """Number of image tokens."""
        return self.config.num_patches

    @property
    def unused_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the names of parameters that no pass uses."""
        return unused_prefixes(self.config)

    def embed(self, image: Tensor, text_ids: Tensor) -> Tensor:
        """The language model's input: text [B, L] with the image's tokens after BOS.

        Returns [B, L + patches, d].
        """
        text = self.language_model.model.embed_tokens(text_ids)
        return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)

    def read(
        self, inputs: Tensor, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The language model's final-norm hidden states [B, T, d].

        Layer by layer. Without a mask, attention is causal or full by the layers' flag, for which
        there are kernels that never hold the scores. The library's own way looks into the
        positions' values before it leaves the mask out, and a GPU is waited for.

        Args:
            inputs: [B, T, d].
            positions: int64[B or 1, T]; None: 0, 1, 2, ...
            mask: bool[B, 1, 1 or T, T], which keys are seen; None: those of the layers' flag.
        """
        text = self.language_model.model
        if positions is None:
            positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        rotation = text.rotary_emb(inputs, position_ids=positions)
        hidden = inputs
        for layer in text.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotation,
            )
        normed: Tensor = text.norm(hidden)
        return normed

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Final-norm hidden states [..., d] -> float32[..., 256]: only the action ids' rows."""
        ids = self.config.spec.action_ids
        rows = self.language_model.lm_head.weight[ids.start : ids.stop]
        return F.linear(hidden, rows).float()


Policy = TypeVar("Policy", bound=VisionLanguageModel)


def llama_config(text: TextConfig) -> LlamaConfig:
    """Transformers' configuration of the language model."""
    return LlamaConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        max_position_embeddings=text.max_position_embeddings,
        rms_norm_eps=text.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


def with_weights(
    make: Callable[[], Policy],
    checkpoint: str | Path,
    dtype: torch.dtype,
    device: str | torch.device,
) -> Policy:
    """A model with a checkpoint's weights, in evaluation mode.

    Nothing is initialised twice: the modules are built without memory and take the file's
    tensors, which on a CPU in the stored data type stay mapped from the file.

    Args:
        make: makes the model.
        checkpoint: the folder.
        dtype: of the model's parameters.
        device: where they go.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = make()
    reader = CheckpointReader(checkpoint)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    stored = {key for key in reader if not key.endswith("rotary_emb.inv_freq")}
    if wrong := sorted(wanted.keys() ^ stored):
        raise CheckpointError(f"{checkpoint}: missing or unexpected: {', '.join(wrong[:8])}")
    for key, shape in wanted.items():
        if reader.shape(key) != shape:
            raise CheckpointError(f"{checkpoint}: {key} is {reader.shape(key)}, expected {shape}")
    weights = {key: reader.tensor(key).to(device=device, dtype=dtype) for key in wanted}
    model.load_state_dict(weights, assign=True)
    # The rotation table isn't stored and stays float32 whatever the weights' type.
    rotary = LlamaRotaryEmbedding(llama_config(model.config.text)).to(device)
    model.language_model.model.rotary_emb = rotary
    return model.eval()
