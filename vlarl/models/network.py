"""What a policy's network computes on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ObservationBatch:
    """B observations on the model's device."""

    pixel_values: Tensor
    """float32 [B, 3 * towers, S, S]."""
    prompt_ids: Tensor
    """int64 [B, L], padded on the right."""
    prompt_lengths: Tensor
    """int64 [B]."""
