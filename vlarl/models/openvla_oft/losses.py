"""Supervised fine-tuning as the originals do it."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vlarl.models.openvla_oft.config import STOP_ID


def supervised_loss(logits: Tensor, action_ids: Tensor) -> Tensor:
    """Cross-entropy over the whole vocabulary, on a chunk's action tokens and stop; a mean.

    Stop is a target in both conventions: it is predicted at the last placeholder, and whether it
    is read as well is the network's matter.

    Args:
        logits: float32[B, n + 1, V], of a pass that was asked for what supervision needs.
        action_ids: int64[B, n].
    """
    targets = F.pad(action_ids, (0, 1), value=STOP_ID)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
