"""Targets of imitation and what it is measured by, one number a token; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def soft_targets(sigmas: Sequence[float], bins: int) -> Tensor:
    """Target distributions [K, bins, bins]: for each of K tokens one row a label.

    A row is a Gaussian over neighbouring bins, cut at the ends and normalised: being off by one bin
    costs less than being off by a hundred, which plain cross-entropy doesn't know. A token's sigma
    is its deviation in bins; 0: all on the label.
    """
    distance = (torch.arange(bins)[None, :] - torch.arange(bins)[:, None]).float()
    rows = [
        (-0.5 * (distance / sigma).square()).softmax(dim=-1) if sigma else torch.eye(bins)
        for sigma in sigmas
    ]
    return torch.stack(rows)


def jittered(labels: Tensor, draws: Tensor, sigma: float, bins: int) -> Tensor:
    """Labels int64 [B, K], each moved by Gaussian noise and kept within the bins.

    Args:
        labels: int64 [B, K].
        draws: [B, K], uniform in [0, 1).
        sigma: the noise's deviation in bins.
        bins: number of them.
    """
    noise = sigma * torch.special.ndtri(draws.double().clamp(1e-6, 1 - 1e-6))
    moved: Tensor = labels + noise.round().long()
    return moved.clamp(0, bins - 1)


def label_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label [B, K], an int64 bin, by logits [B, K, bins] over the action
    ids.
    """
    logp = logits.float().log_softmax(dim=-1)
    return logp.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def pose_loss(predicted: Tensor, poses: Tensor) -> Tensor:
    """Mean squared error [B] over each sample's known poses; both [B, P], NaN where unknown."""
    known = poses.isfinite()
    error = torch.where(known, predicted - poses, 0.0).square().sum(dim=-1)
    return error / known.sum(dim=-1).clamp(min=1)
