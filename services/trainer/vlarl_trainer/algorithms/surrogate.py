"""The policy's loss, whichever algorithm finds the advantages.

    pi_old, w                                                           corrected
    rho     = pi(a | s) / pi_old(a | s)                                 clipped_policy_terms
    L       = w max(-A rho, -A clip(rho, 1 - eps_low, 1 + eps_high))
    KL      = (r - 1) - log r,  r = pi(a | s) / pi_start(a | s)         approximate_kl

Losses are one number a sample. Nothing is averaged over samples here: the caller weighs them, so
that gradients accumulated over micro-batches and ranks are exactly those of the whole mini-batch.
Where each formula is applied: learner.py and policy_update.py. Which of an answer's K tokens count:
executed.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlarl.config.learning import Correction, Ratio
from vlarl_trainer.algorithms.executed import averaged, log_ratio, mean_of_all, summed


@dataclass(frozen=True)
class PolicyTerms:
    """The clipped surrogate loss of B answers of K tokens, and what to watch it by."""

    loss: Tensor
    """[B], to be averaged; carries the gradient."""
    kl: Tensor
    """[B], approximate KL(start || new) of whole answers, detached."""
    clipped: Tensor
    """[B], share of the answer's ratios that clipping changed, detached."""


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
    executed: Tensor | None = None,
) -> PolicyTerms:
    """PPO's clipped surrogate (Schulman et al. 2017), asymmetric where the clips differ.

        L = w * max(-A * rho, -A * clip(rho, 1 - clip_low, 1 + clip_high))

    with rho = exp(sum_i new_i - sum_i old_i) for a whole answer, or for each of its control steps
    or tokens, averaged over those that were executed.

    Args:
        logprobs_new: [B, K] under the policy being optimised.
        logprobs_old: [B, K] that the ratio is against; a constant.
        logprobs_start: [B, K] under the weights that the update began with, from where the KL is
            measured; the same where these acted.
        advantages: [B].
        clip_low: the ratio is clipped to 1 - clip_low from below.
        clip_high: the ratio is clipped to 1 + clip_high from above.
        ratio: of what.
        weights: w, as `corrected` gives them; none: 1.
        executed: what of the answers was executed, see executed.py; none: all.
    """
    moved = log_ratio(logprobs_new, logprobs_start, "action", executed).squeeze(-1)
    rho = log_ratio(logprobs_new, logprobs_old, ratio, executed).exp()
    advantage = advantages.unsqueeze(-1)
    unclipped = -advantage * rho
    clipped = -advantage * rho.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    return PolicyTerms(
        loss=averaged(loss if weights is None else weights * loss, executed),
        kl=approximate_kl(moved).detach(),
        clipped=averaged((clipped > unclipped).float(), executed).detach(),
    )


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Estimates KL(old || new) from samples of old: (rho - 1) - log rho, never negative (k3 of
    Schulman's note "Approximating KL divergence"). log_ratio: log new - log old, any shape.
    """
    return torch.expm1(log_ratio) - log_ratio


def reference_kl(logprobs: Tensor, reference: Tensor, executed: Tensor | None = None) -> Tensor:
    """Estimates KL(policy || reference) of whole answers, from samples of the policy: [B], k3 of
    each token's distribution, summed over the tokens that were executed (GRPO, arXiv 2402.03300,
    equation 4).

    Args:
        logprobs: [B, K] under the policy.
        reference: [B, K] under the policy that training began with.
        executed: what of the answers was executed; none: all.
    """
    return summed(approximate_kl(reference - logprobs), executed)


def corrected(
    kind: Correction,
    *,
    start: Tensor,
    server: Tensor,
    fresh: Tensor,
    ratio: Ratio,
    cap: float,
    executed: Tensor | None = None,
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
        ratio: of what.
        cap: most that a sample weighs.
        executed: what of the answers was executed; none: all.

    Returns:
        Log-probs [N, K], and weights, as many as there are ratios: [N, K], [N, C] or [N, 1]; none:
        1.
    """
    if kind == "server":
        return torch.where(fresh.unsqueeze(-1), start, server), None
    return start, log_ratio(start, server, ratio, executed).exp().clamp(max=cap)


def before_a_step(
    start: Tensor,
    server: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Ratio,
    executed: Tensor | None = None,
) -> dict[str, float]:
    """How far the weights at the update's start are from those that acted, [N, K] each: with equal
    weights nothing but rounding. By their names in record/metrics.py.
    """
    rho = log_ratio(start, server, ratio, executed).exp()
    outside = (rho < 1.0 - clip_low) | (rho > 1.0 + clip_high)
    moved = log_ratio(start, server, "action", executed)
    return {
        "start_outside_clip": mean_of_all(outside.float(), executed),
        "start_k3": float(approximate_kl(moved).mean()),
    }
