"""Wrong actions made of right ones: negatives that only the action tells apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlarl.openvla.tokens import ACTION_BINS

DRAWS = 5
"""Random numbers that one sample takes."""

_LEAST = 32
"""Bins, an eighth of the range, by which some axis must differ for exchanged axes to be wrong."""
_GRIPPER = -1


class Perturbed(NamedTuple):
    """B actions, some of them wrong."""

    bins: Tensor
    """int64 [B, K]."""
    labels: Tensor
    """float32 [B], 0 where the action was made wrong."""
    counts: Tensor
    """bool [B, K + 1]: whether the answer after 0, 1, ... tokens is told by what was read so far.
    Where an action was made wrong it isn't before the first token that differs."""


def perturbed(bins: Tensor, labels: Tensor, draws: Tensor, share: float) -> Perturbed:
    """Makes a share of the positive actions wrong, in one of four ways alike:

    1. the hand moves the other way;
    2. the hand moves anywhere;
    3. the gripper does the opposite;
    4. x, y and z are shuffled, or 2. where that is nearly the same.

    What becomes of a sample doesn't depend on those beside it, so not on micro-batches or ranks.

    Args:
        bins: int64 [B, K], bins of action tokens: x, y, z first, the gripper last.
        labels: float32 [B].
        draws: float32 [B, DRAWS], uniform in [0, 1).
        share: of the positive ones.
    """
    chosen = (labels == 1) & (draws[:, 0] < share)
    kind = (4 * draws[:, 1]).long()
    turned, anywhere, opposite = bins.clone(), bins.clone(), bins.clone()
    turned[:, :3] = ACTION_BINS - 1 - bins[:, :3]
    anywhere[:, :3] = (ACTION_BINS * draws[:, 2:5]).long()
    opposite[:, _GRIPPER] = ACTION_BINS - 1 - bins[:, _GRIPPER]
    shuffled = torch.cat([bins[:, [1, 2, 0]], bins[:, 3:]], dim=1)
    alike = (shuffled - bins).abs().amax(dim=1) < _LEAST
    shuffled = torch.where(alike[:, None], anywhere, shuffled)
    ways = torch.stack([turned, anywhere, opposite, shuffled], dim=1)
    rows = torch.arange(len(bins), device=bins.device)
    made = torch.where(chosen[:, None], ways[rows, kind], bins)
    differs = (made != bins).cumsum(dim=1) > 0
    # An action that stands still can't be turned round: it stays right.
    wrong = chosen & differs[:, -1]
    told = torch.cat([torch.zeros_like(differs[:, :1]), differs], dim=1)
    return Perturbed(
        bins=made,
        labels=torch.where(wrong, 0.0, labels),
        counts=told | ~wrong[:, None],
    )
