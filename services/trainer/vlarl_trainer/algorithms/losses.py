"""The losses of proximal policy optimisation, one number a sample.

Nothing is averaged over samples here: the caller weighs them, so that gradients accumulated over
micro-batches and ranks are exactly those of the whole mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyTerms:
    """The clipped surrogate loss of B actions of K tokens, and what to watch it by."""

    loss: Tensor
    """[B], to be averaged; carries the gradient."""
    kl: Tensor
    """[B], approximate KL(start || new) of whole actions, detached."""
    clipped: Tensor
    """[B], share of the action's ratios at which clipping bound, detached."""


def clipped_policy_terms(
    logprobs_new: Tensor,
    logprobs_old: Tensor,
    logprobs_start: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Literal["action", "token"],
) -> PolicyTerms:
    """PPO's clipped surrogate (Schulman et al. 2017), asymmetric where the clips differ.

        L = max(-A * rho, -A * clip(rho, 1 - clip_low, 1 + clip_high))

    with rho = exp(sum_i new_i - sum_i old_i) for a whole action, or exp(new_i - old_i) for each
    token, averaged over the action's tokens.

    Args:
        logprobs_new: [B, K] under the policy being optimised.
        logprobs_old: [B, K] under the weights that acted; a constant.
        logprobs_start: [B, K] under the weights that the update began with, from where the KL is
            measured; the same where these acted.
        advantages: [B].
        clip_low: the ratio is clipped to 1 - clip_low from below.
        clip_high: the ratio is clipped to 1 + clip_high from above.
        ratio: of whole actions or of tokens.
    """
    action_difference = (logprobs_new - logprobs_old).sum(dim=-1, keepdim=True)
    moved = (logprobs_new - logprobs_start).sum(dim=-1)
    difference = action_difference if ratio == "action" else logprobs_new - logprobs_old
    rho = difference.exp()
    advantage = advantages.unsqueeze(-1)
    unclipped = -advantage * rho
    clipped = -advantage * rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    return PolicyTerms(
        loss=torch.maximum(unclipped, clipped).mean(dim=-1),
        kl=approximate_kl(moved).detach(),
        clipped=(clipped > unclipped).float().mean(dim=-1).detach(),
    )


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Estimates KL(old || new) from samples of old: (rho - 1) - log rho, never negative (k3 of
    Schulman's note "Approximating KL divergence"). log_ratio: log new - log old, any shape.
    """
    return torch.expm1(log_ratio) - log_ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """0.5 * max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2); all [B]; clip 0: no clip."""
    loss = (values - returns).square()
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns).square())
    return 0.5 * loss


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 is perfect, 0 no better than a constant; 0 where R is constant."""
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1.0 - (returns - values).var(correction=0) / variance)
