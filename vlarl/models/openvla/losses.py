"""Supervised fine-tuning as the original does it, and with softened targets."""

from __future__ import annotations

import torch
from torch import Tensor


def action_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of B actions, the mean over their tokens: [B], in nats.

    Args:
        logits: [B, K, bins], over the action ids, teacher-forced.
        labels: int64 [B, K], the expert's bins, counted from the first action id.
        targets: [K, bins, bins]: for each token, by its label, how it is spread.
    """
    logp = logits.float().log_softmax(dim=-1)
    tokens = torch.arange(labels.shape[1], device=labels.device)
    return -(targets[tokens, labels] * logp).sum(dim=-1).mean(dim=-1)
