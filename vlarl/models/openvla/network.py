"""The OpenVLA model in torch, under the original checkpoints' state-dict keys.

    BOS | image tokens | prompt ... "▁" | action tokens -> Llama

The logits of action token i, and the critic's feature, come from the position before it: for the
first one, from "▁".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from vlarl.models.network import ActionForward, ObservationBatch
from vlarl.models.openvla.backbone import VisionLanguageModel, with_weights
from vlarl.models.openvla.config import OpenVLAConfig


class GeneratedActions(NamedTuple):
    """Action tokens drawn from the policy."""

    token_ids: Tensor
    """int64[B, action_dim]."""
    logprobs: Tensor
    """Natural log-probability of each token over the 256 ids: float32[B, action_dim]."""


class OpenVLA(VisionLanguageModel):
    """The policy. Call it: ``model(pixel_values, prompt_ids, prompt_lengths, action_ids)``."""

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

    def answer(
        self,
        observations: ObservationBatch,
        token_ids: Tensor | None = None,
        answer_ids: Sequence[int] = (),
    ) -> ActionForward:
        """One pass, see `PolicyNetwork`; without tokens only the first one's logits."""
        output: ActionForward = self(
            observations.pixel_values,
            observations.prompt_ids,
            observations.prompt_lengths,
            token_ids,
            answer_ids,
        )
        return output

    def greedy(self, observations: ObservationBatch, likeliest: Tensor) -> Tensor:
        """The likeliest action tokens, each after the ones before it: int64[B, action_dim].

        Without a cache, so that prompts may differ in length and the model may be sharded: one
        pass a token, but for the first, which is known.

        Args:
            observations: as in a pass.
            likeliest: int64[B, action_dim], the likeliest ids after any others. Only the first
                counts: no action token comes before it.
        """
        chosen = likeliest.clone()
        for token in range(1, chosen.shape[1]):
            logits = self.answer(observations, chosen).logits
            chosen[:, token] = self.config.spec.action_ids.start + logits[:, token].argmax(dim=-1)
        return chosen

    def sequence_lengths(self, prompt_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [B] that the language model reads: image, prompt, and all of the action's but the
        last.
        """
        return self.patches + prompt_lengths + self.config.spec.tokens - 1


def load_model(
    checkpoint: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> OpenVLA:
    """An original checkpoint as a model in evaluation mode; see `with_weights`.

    Raises:
        ConfigError: the configuration can't be used.
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    config = OpenVLAConfig.from_directory(checkpoint)
    return with_weights(lambda: OpenVLA(config), checkpoint, dtype, device)


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
