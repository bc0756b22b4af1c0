"""The policy's loss, whichever algorithm finds the advantages.

    pi_old, w                                                           corrected
    rho     = pi(a | s) / pi_old(a | s)                                 clipped_policy_terms
    L       = w max(-A rho, -A clip(rho, 1 - eps_low, 1 + eps_high))
    KL      = (r - 1) - log r,  r = pi(a | s) / pi_start(a | s)         approximate_kl

Losses are one number a sample. Nothing is averaged over samples here: the caller weighs them, so
that gradients accumulated over micro-batches and ranks are exactly those of the whole mini-batch.
Where each formula is applied: learner.py and policy_update.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlarl.config.learning import Correction, Ratio


@dataclass(frozen=True)
class PolicyTerms:
    """The clipped surrogate loss of B actions of K tokens, and what to watch it by."""

    loss: Tensor
    """[B], to be averaged; carries the gradient."""
    kl: Tensor
    """[B], approximate KL(start || new) of whole actions, detached."""
    clipped: Tensor
    """[B], share of the action's ratios that clipping changed, detached."""


def clipped_policy_terms(
    logprobs_new: Tensor,
    logprobs_old: Tensor,
    logprobs_start: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Ratio,
    weights: Tensor | None = None,
) -> PolicyTerms:
    """PPO's clipped surrogate (Schulman et al. 2017), asymmetric where the clips differ.

        L = w * max(-A * rho, -A * clip(rho, 1 - clip_low, 1 + clip_high))

    with rho = exp(sum_i new_i - sum_i old_i) for a whole action, or exp(new_i - old_i) for each
    token, averaged over the action's tokens.

    Args:
        logprobs_new: [B, K] under the policy being optimised.
        logprobs_old: [B, K] that the ratio is against; a constant.
        logprobs_start: [B, K] under the weights that the update began with, from where the KL is
            measured; the same where these acted.
        advantages: [B].
        clip_low: the ratio is clipped to 1 - clip_low from below.
        clip_high: the ratio is clipped to 1 + clip_high from above.
        ratio: of whole actions or of tokens.
        weights: w, [B, 1] for whole actions, [B, K] for tokens; none: 1.
    """
    moved = (logprobs_new - logprobs_start).sum(dim=-1)
    rho = _log_ratio(logprobs_new, logprobs_old, ratio).exp()
    advantage = advantages.unsqueeze(-1)
    unclipped = -advantage * rho
    clipped = -advantage * rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    return PolicyTerms(
        loss=(loss if weights is None else weights * loss).mean(dim=-1),
        kl=approximate_kl(moved).detach(),
        clipped=(clipped > unclipped).float().mean(dim=-1).detach(),
    )


def _log_ratio(new: Tensor, old: Tensor, ratio: Ratio) -> Tensor:
    """[B, 1] of whole actions, [B, K] of tokens."""
    return new - old if ratio == "token" else (new - old).sum(dim=-1, keepdim=True)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Estimates KL(old || new) from samples of old: (rho - 1) - log rho, never negative (k3 of
    Schulman's note "Approximating KL divergence"). log_ratio: log new - log old, any shape.
    """
    return torch.expm1(log_ratio) - log_ratio


def reference_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimates KL(policy || reference) of whole actions, from samples of the policy: [B], k3 of
    each token's distribution, summed over the action's K (GRPO, arXiv 2402.03300, equation 4).

    Args:
        logprobs: [B, K] under the policy.
        reference: [B, K] under the policy that training began with.
    """
    return approximate_kl(reference - logprobs).sum(dim=-1)


def corrected(
    kind: Correction,
    *,
    start: Tensor,
    server: Tensor,
    fresh: Tensor,
    ratio: Ratio,
    cap: float,
) -> tuple[Tensor, Tensor | None]:
    """What the ratio is against, and how much each sample weighs, where other weights than the
    trainer's have sampled.

    server: a fresh action is compared with the trainer's own log-probs, a stale one with the
    server's, as the weights that took it are gone.

    decoupled: all are compared with the weights at the update's start, and weighed by
    min(pi_start / pi_server, cap), fresh ones too: in 16 bits server and trainer differ (Hilton et
    al., "Batch size-invariance for policy optimization", arXiv 2110.00641, with the weights
    truncated as Espeholt et al. do, arXiv 1802.01561).

    Args:
        kind: which of the two.
        start: [N, K] under the weights at the update's start.
        server: [N, K] as the policy server reported them.
        fresh: bool [N], whether the trainer's version acted.
        ratio: of whole actions or of tokens.
        cap: most that a sample weighs.

    Returns:
        Log-probs [N, K], and weights [N, 1] or [N, K]; none: 1.
    """
    if kind == "server":
        return torch.where(fresh.unsqueeze(-1), start, server), None
    return start, _log_ratio(start, server, ratio).exp().clamp(max=cap)


def before_a_step(
    start: Tensor, server: Tensor, *, clip_low: float, clip_high: float, ratio: Ratio
) -> dict[str, float]:
    """How far the weights at the update's start are from those that acted, [N, K] each: with equal
    weights nothing but rounding. By their names in record/metrics.py.
    """
    rho = _log_ratio(start, server, ratio).exp()
    outside = (rho < 1.0 - clip_low) | (rho > 1.0 + clip_high)
    return {
        "start_outside_clip": float(outside.float().mean()),
        "start_k3": float(approximate_kl((start - server).sum(dim=-1)).mean()),
    }
