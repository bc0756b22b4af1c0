"""OpenVLA-OFT in torch: all action tokens of a chunk from one pass, in which each token sees all.

    BOS | patches of each image | [proprioception] | prompt ... "▁" | n placeholders | [stop]

Placeholders are zeros. The logits of action token i come from "▁" + i: the first from "▁" itself,
the last from placeholder n-2. In a batch, padding lies between "▁" and the placeholders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from vlarl.models.network import ActionForward, ObservationBatch
from vlarl.models.openvla.backbone import VisionLanguageModel, with_weights
from vlarl.models.openvla.limits import MAX_PROMPT_TOKENS
from vlarl.models.openvla_oft.config import STOP_ID, OFTConfig


class ProprioProjector(nn.Module):
    """Proprioception as one token: two layers with the exact GELU between them."""

    def __init__(self, proprio_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        """Normalised [B, P] -> [B, 1, d], in the weights' type."""
        hidden = F.gelu(self.fc1(proprio.to(self.fc1.weight.dtype)))
        token: Tensor = self.fc2(hidden)
        return token[:, None]


class OpenVLAOFT(VisionLanguageModel):
    """The policy. Call it: ``model(pixel_values, prompt_ids, prompt_lengths, proprio)``."""

    def __init__(self, chunked: OFTConfig) -> None:
        super().__init__(chunked.base)
        self.chunked = chunked
        self.proprio_projector = (
            ProprioProjector(chunked.spec.proprio_dim, self.feature_width)
            if chunked.spec.proprio_dim
            else None
        )
        for layer in self.language_model.model.layers:
            # Transformers asks this flag where there is no mask.
            layer.self_attn.is_causal = False

    @property
    def patches(self) -> int:
        """Number of all images' tokens."""
        return self.chunked.num_patches

    def forward(
        self,
        pixel_values: Tensor,
        prompt_ids: Tensor,
        prompt_lengths: Tensor | None = None,
        proprio: Tensor | None = None,
        supervised: bool = False,
    ) -> ActionForward:
        """Logits of a chunk's action tokens, and what a critic may look at.

        Prompts of different length share a batch exactly: padding is seen by no token and takes
        no position.

        Args:
            pixel_values: [B, 3 * towers * images, S, S], the main camera first.
            prompt_ids: int64[B, L], padded on the right (see ``pad_prompts``).
            prompt_lengths: int64[B], each prompt's own length, BOS and "▁" included; None: no
                prompt is padded, and attention needs no mask.
            proprio: normalised, [B, P], where the policy reads it.
            supervised: asks for what the originals' loss needs: logits of the whole vocabulary
                for the action tokens and stop, [B, n + 1, V].

        Raises:
            ValueError: the number of images, or proprioception, isn't what the policy reads.
        """
        image = self.image_tokens(pixel_values)
        inputs = self._sequence(image, prompt_ids, self._proprio_token(proprio))
        positions = mask = None
        if prompt_lengths is not None:
            seen = self._seen(prompt_lengths, prompt_ids.shape[1], inputs.shape[1])
            positions, mask = seen.cumsum(dim=1) - 1, seen[:, None, None]
        hidden = self.read(inputs, positions, mask)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        predicting = hidden[rows, self._places(prompt_ids, prompt_lengths)]
        if supervised:
            logits = self.language_model.lm_head(predicting).float()
        else:
            logits = self.action_logits(predicting[:, :-1])
        # A copy, as OpenVLA's: FSDP's hooks do not survive on a view.
        return ActionForward(logits, predicting[:, 0].clone(), image.detach())

    def answer(
        self,
        observations: ObservationBatch,
        token_ids: Tensor | None = None,  # noqa: ARG002 - no token depends on another
        answer_ids: Sequence[int] = (),
    ) -> ActionForward:
        """One pass for a whole chunk, see `PolicyNetwork`. It reads no action tokens."""
        if answer_ids:
            raise ValueError("OpenVLA-OFT reads no action tokens, so nothing can be asked of them")
        output: ActionForward = self(
            observations.pixel_values,
            observations.prompt_ids,
            observations.prompt_lengths,
            observations.proprio,
        )
        return output

    def supervised_logits(self, observations: ObservationBatch) -> Tensor:
        """Logits [B, n + 1, V] for the originals' loss: of the action tokens and of stop."""
        output: ActionForward = self(
            observations.pixel_values,
            observations.prompt_ids,
            observations.prompt_lengths,
            observations.proprio,
            supervised=True,
        )
        return output.logits

    def greedy(self, observations: ObservationBatch, likeliest: Tensor) -> Tensor:  # noqa: ARG002
        """The likeliest ids themselves: no token depends on another."""
        return likeliest

    def sequence_lengths(self, prompt_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [B] that the language model reads: images, proprioception, prompt, placeholders
        and stop.
        """
        return self.chunked.longest_sequence - MAX_PROMPT_TOKENS + prompt_lengths

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """The images as the language model reads them, one after the other: [B, patches, d].

        Raises:
            ValueError: there are more or fewer than the policy sees.
        """
        images, channels = len(self.chunked.spec.cameras), 3 * len(self.config.towers)
        if pixel_values.shape[1] != images * channels:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} channels, the policy needs {channels} "
                f"for each of its cameras: {', '.join(self.chunked.spec.cameras)}"
            )
        each = pixel_values.reshape(-1, channels, *pixel_values.shape[2:])
        return super().image_tokens(each).reshape(len(pixel_values), self.patches, -1)

    def _proprio_token(self, proprio: Tensor | None) -> Tensor | None:
        if (self.proprio_projector is None) != (proprio is None):
            needs = "reads no" if proprio is not None else "needs"
            raise ValueError(f"the policy {needs} proprioception")
        if proprio is None or self.proprio_projector is None:
            return None
        token: Tensor = self.proprio_projector(proprio)
        return token

    def _sequence(self, image: Tensor, prompt_ids: Tensor, proprio: Tensor | None) -> Tensor:
        """The language model's input [B, T, d]."""
        after_bos = image if proprio is None else torch.cat([image, proprio], dim=1)
        text = self.embed(after_bos, prompt_ids)
        parts = [text, text.new_zeros(len(text), self.chunked.spec.tokens, text.shape[2])]
        if self.chunked.convention == "stop":
            stop = prompt_ids.new_full((len(text), 1), STOP_ID)
            parts.append(self.language_model.model.embed_tokens(stop))
        return torch.cat(parts, dim=1)

    @property
    def _before_text(self) -> int:
        """Number of tokens between BOS and the prompt's second token."""
        return self.patches + bool(self.chunked.spec.proprio_dim)

    def _seen(self, prompt_lengths: Tensor, longest: int, total: int) -> Tensor:
        """bool[B, total]: false where the prompt is padded."""
        place = torch.arange(total, device=prompt_lengths.device)[None] - self._before_text
        return (place < prompt_lengths[:, None]) | (place >= longest)

    def _places(self, prompt_ids: Tensor, prompt_lengths: Tensor | None) -> Tensor:
        """int64[B, n + 1]: where "▁" and the placeholders lie."""
        rows, longest = prompt_ids.shape
        placeholders = torch.arange(self.chunked.spec.tokens, device=prompt_ids.device) + longest
        last = prompt_ids.new_full((rows,), longest) if prompt_lengths is None else prompt_lengths
        places = torch.cat([last[:, None] - 1, placeholders.expand(rows, -1)], dim=1)
        return places + self._before_text


def load_model(
    checkpoint: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> OpenVLAOFT:
    """A checkpoint as a model in evaluation mode; see `with_weights`.

    Raises:
        ConfigError: the configuration can't be used.
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    config = OFTConfig.from_directory(checkpoint)
    return with_weights(lambda: OpenVLAOFT(config), checkpoint, dtype, device)
