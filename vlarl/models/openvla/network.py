"""The OpenVLA model in torch, under the original checkpoints' state-dict keys.

    frame -> DINOv2 -+
                     +- concatenated channels -> projector -> image tokens --+
    frame -> SigLIP -+                                                       |
                              BOS | image tokens | prompt ... "▁" | action tokens -> Llama

The logits of action token i, and the critic's feature, come from the position before it: for the
first one, from "▁".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlarl.models.openvla.config import OpenVLAConfig, TextConfig
from vlarl.models.openvla.tensors import unused_prefixes
from vlarl.models.openvla.vision import VisionTransformer
from vlarl.weights.checkpoint import CheckpointReader
from vlarl.weights.folder import CheckpointError


class ActionForward(NamedTuple):
    """What the policy says about a batch of observations with given action tokens.

    A named tuple, because FSDP looks for the tensors whose gradients it must wait for in tuples,
    not in dataclasses.
    """

    logits: Tensor
    """Over the 256 action ids, ascending, for each action token: float32[B, tokens, 256]. Where
    answers were asked for: over these, after 0, 1, ... action tokens: float32[B, tokens + 1, A].
    """
    feature: Tensor
    """Final-norm hidden state at "▁", where the first action token is predicted: [B, d]."""
    image_tokens: Tensor
    """The projector's output [B, patches, d], without gradient."""


class GeneratedActions(NamedTuple):
    """Action tokens drawn from the policy."""

    token_ids: Tensor
    """int64[B, action_dim]."""
    logprobs: Tensor
    """Natural log-probability of each token over the 256 ids: float32[B, action_dim]."""


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


class OpenVLA(ImageEncoder):
    """The policy. Call it: ``model(pixel_values, prompt_ids, prompt_lengths, action_ids)``."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(VisionBackbone(config), Projector(config))
        self.config = config
        self.language_model = LlamaForCausalLM(llama_config(config.text))

    def forward(
        self,
        pixel_values: Tensor,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        action_ids: Tensor | None = None,
        answer_ids: Sequence[int] = (),
    ) -> ActionForward:
        """Teacher-forced action logits and what a critic may look at.

        Prompts of different length share a batch exactly: each row's action tokens follow its
        own prompt and the padding comes last, where causal attention never looks.

        Args:
            pixel_values: [B, 3 * towers, S, S].
            prompt_ids: int64[B, L], padded on the right (see ``pad_prompts``).
            prompt_lengths: int64[B], each prompt's own length, BOS and "▁" included.
            action_ids: int64[B, action_dim]; the last one is predicted, never read. Absent, only
                the first token's logits are computed, which is enough for a critic.
            answer_ids: A ids of the vocabulary that might come next instead of an action token.
                Given, logits are over them and all action tokens are read: what a reward model
                says of an action.
        """
        if answer_ids and action_ids is not None:
            # An answer is predicted after the last one, too.
            action_ids = F.pad(action_ids, (0, 1))
        tokens = 1 if action_ids is None else action_ids.shape[1]
        text_ids = prompt_ids
        if action_ids is not None and tokens > 1:
            text_ids = F.pad(prompt_ids, (0, tokens - 1))
            places = prompt_lengths[:, None] + torch.arange(tokens - 1, device=prompt_ids.device)
            text_ids = text_ids.scatter(1, places, action_ids[:, :-1])
        image = self.image_tokens(pixel_values)
        hidden = self.read(self.embed(image, text_ids))
        first = self.config.num_patches + prompt_lengths[:, None] - 1
        places = first + torch.arange(tokens, device=prompt_ids.device)
        rows = torch.arange(len(prompt_ids), device=prompt_ids.device)[:, None]
        predicting = hidden[rows, places]
        if answer_ids:
            head = self.language_model.lm_head.weight[list(answer_ids)]
            logits = F.linear(predicting, head).float()
        else:
            logits = self.action_logits(predicting)
        # A copy: FSDP's hooks do not survive on a view that somebody changes in place.
        return ActionForward(logits, predicting[:, 0].clone(), image.detach())

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

    def greedy(
        self,
        pixel_values: Tensor,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        likeliest: Tensor,
    ) -> Tensor:
        """The likeliest action tokens, each after the ones before it: int64[B, action_dim].

        Without a cache, so that prompts may differ in length and the model may be sharded: one
        pass a token, but for the first, which is known.

        Args:
            pixel_values: as in a pass.
            prompt_ids: as in a pass.
            prompt_lengths: as in a pass.
            likeliest: int64[B, action_dim], the likeliest ids after any others. Only the first
                counts: no action token comes before it.
        """
        chosen = likeliest.clone()
        for token in range(1, chosen.shape[1]):
            logits: Tensor = self(pixel_values, prompt_ids, prompt_lengths, chosen).logits
            chosen[:, token] = self.config.spec.action_ids.start + logits[:, token].argmax(dim=-1)
        return chosen

    def embed(self, image: Tensor, text_ids: Tensor) -> Tensor:
        """The language model's input: text [B, L] with the image's tokens after BOS.

        Returns [B, L + patches, d].
        """
        text = self.language_model.model.embed_tokens(text_ids)
        return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)

    def read(self, inputs: Tensor) -> Tensor:
        """The language model's final-norm hidden states [B, T, d] of inputs [B, T, d], of which
        each sees itself and those before it.

        Layer by layer without a mask: attention is causal by its flag, for which there are kernels
        that never hold the scores. The library's own way looks into the positions' values before it
        leaves the mask out, and a GPU is waited for.
        """
        text = self.language_model.model
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        rotation = text.rotary_emb(inputs, position_ids=positions)
        hidden = inputs
        for layer in text.layers:
            hidden = layer(hidden, position_ids=positions, position_embeddings=rotation)
        normed: Tensor = text.norm(hidden)
        return normed

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Final-norm hidden states [..., d] -> float32[..., 256]: only the action ids' rows."""
        ids = self.config.spec.action_ids
        rows = self.language_model.lm_head.weight[ids.start : ids.stop]
        return F.linear(hidden, rows).float()


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


def load_model(
    checkpoint: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> OpenVLA:
    """An original checkpoint as a model in evaluation mode.

    Nothing is initialised twice: the modules are built without memory and take the file's
    tensors, which on a CPU in the stored data type stay mapped from the file.

    Raises:
        ConfigError: the configuration can't be used.
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    config = OpenVLAConfig.from_directory(checkpoint)
    with torch.device("meta"):
        model = OpenVLA(config)
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
    rotary = LlamaRotaryEmbedding(llama_config(config.text)).to(device)
    model.language_model.model.rotary_emb = rotary
    return model.eval()


@torch.inference_mode()
def generate_actions(
    model: OpenVLA,
    pixel_values: Tensor,
    prompt_ids: Tensor,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> GeneratedActions:
    """Draw actions token by token with a key-value cache, as eager serving does.

    The reference that the policy server is compared with, not how to serve.

    Args:
        model: the policy.
        pixel_values: [B, 3 * towers, S, S].
        prompt_ids: int64[B, L], all of the same length.
        temperature: 0 takes the most probable id; log-probs are then at temperature 1.
        generator: the source of randomness, on the model's device.
    """
    cache = DynamicCache()
    inputs = model.embed(model.image_tokens(pixel_values), prompt_ids)
    token_ids: list[Tensor] = []
    logprobs: list[Tensor] = []
    for _ in range(model.config.spec.action_dim):
        hidden = model.language_model.model(
            inputs_embeds=inputs, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        logits = model.action_logits(hidden) / (temperature or 1.0)
        distribution = logits.log_softmax(dim=-1)
        if temperature:
            choice = torch.multinomial(distribution.exp(), 1, generator=generator)
        else:
            choice = distribution.argmax(dim=-1, keepdim=True)
        logprobs.append(distribution.gather(1, choice))
        token_ids.append(choice + model.config.spec.action_ids.start)
        inputs = model.language_model.model.embed_tokens(token_ids[-1])
    return GeneratedActions(torch.cat(token_ids, dim=1), torch.cat(logprobs, dim=1))
