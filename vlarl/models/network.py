"""What a policy's network computes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObservationBatch:
    """B observations on the model's device."""

    pixel_values: Tensor
    """float32 [B, 3 * towers * images, S, S]."""
    prompt_ids: Tensor
    """int64 [B, L], padded on the right."""
    prompt_lengths: Tensor
    """int64 [B]."""
    proprio: Tensor | None = None
    """Normalised proprioception, float32 [B, P], of a policy that reads it."""


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad_id: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Prompts of different length as int64[B, longest], padded on the right, and their lengths."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [[*prompt, *[pad_id] * (longest - len(prompt))] for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
