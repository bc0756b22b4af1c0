"""Supervised fine-tuning as the originals do it, and with softened targets."""

from __future__ import annotations

import torch
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


def softened_losses(
    logits: Tensor, bins: Tensor, counted: Tensor, targets: Tensor, first_id: int
) -> Tensor:
    """`supervised_loss` of each sample [B], whose targets may be spread over neighbouring bins, and
    of which tokens may be missing. With one-hot targets and all tokens its mean is the original.

    Every token weighs the same, so that a sample with few of them has a smaller loss.

    Args:
        logits: float32[B, n + 1, V], as there.
        bins: int64[B, n], the action tokens, counted from the first action id.
        counted: bool[B, n], whether a token is a target.
        targets: float32[n, bins, bins]: for each token, by its label, how it is spread.
        first_id: the lowest action id.
    """
    logp = logits.log_softmax(dim=-1)
    tokens = torch.arange(bins.shape[1], device=bins.device)
    actions = logp[:, :-1, first_id : first_id + targets.shape[-1]]
    each = -(targets[tokens, bins] * actions).sum(dim=-1) * counted
    return (each.sum(dim=1) - logp[:, -1, STOP_ID]) / logits.shape[1]
