"""The arithmetic of proximal policy optimisation, in the order in which an iteration needs it.

    delta_t = r_t + gamma V(s_t+1) - V(s_t)                             generalised_advantages
    A_t     = delta_t + gamma lambda A_t+1
    R_t     = A_t + V(s_t)
    A       = (A - mean A) / max(deviation A, floor)                    whiten

    rho     = pi(a | s) / pi_old(a | s)                                 clipped_policy_terms
    L       = max(-A rho, -A clip(rho, 1 - eps_low, 1 + eps_high))
    KL      = (r - 1) - log r,  r = pi(a | s) / pi_start(a | s)         approximate_kl

    L_V     = 0.5 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)      value_loss

Losses are one number a sample. Nothing is averaged over samples here: the caller weighs them, so
that gradients accumulated over micro-batches and ranks are exactly those of the whole mini-batch.
Where each formula is applied: learner.py, policy_update.py and critic.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vlarl_trainer.batch import Batch

Floats = NDArray[np.float64]


def generalised_advantages(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_value: float,
    *,
    terminal: bool,
    gamma: float,
    gae_lambda: float,
) -> tuple[Floats, Floats]:
    """Advantages and returns of one episode (GAE, Schulman et al. 2016).

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lambda * A_{t+1}
        R_t     = A_t + V_t

    The recursion ends with the episode. A terminal episode (success) has no value after its last
    step; a truncated one (time limit) goes on in principle, so the value of the state it was cut
    at stands in for what would have followed.

    Args:
        rewards: [T], T >= 1.
        values: [T], the critic's V(s_0) .. V(s_{T-1}).
        bootstrap_value: V(s_T); ignored where the episode is terminal.
        terminal: whether s_T is terminal.
        gamma: discount.
        gae_lambda: lambda.

    Returns:
        Advantages [T] and returns [T], float64.
    """
    reward = np.asarray(rewards, dtype=np.float64)
    value = np.asarray(values, dtype=np.float64)
    if reward.ndim != 1 or reward.shape != value.shape or not reward.size:
        raise ValueError(f"rewards {reward.shape} and values {value.shape} must both be [T >= 1]")
    following = np.append(value[1:], 0.0 if terminal else bootstrap_value)
    delta = reward + gamma * following - value
    advantages = np.empty_like(delta)
    running = 0.0
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * gae_lambda * running
        advantages[t] = running
    return advantages, advantages + value


def batch_advantages(
    batch: Batch,
    values: Floats,
    gamma: float,
    gae_lambda: float,
    *,
    limit_is_terminal: bool = False,
) -> tuple[Floats, Floats]:
    """Advantages [N], not whitened, and returns [N], from the critic's values [S].

    limit_is_terminal: whether nothing follows an episode that ended by its step limit, either.
    """
    found = [
        generalised_advantages(
            batch.rewards[episode.start : episode.stop],
            values[episode.start : episode.stop],
            0.0 if episode.final_state is None else float(values[episode.final_state]),
            terminal=episode.terminal or limit_is_terminal,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        for episode in batch.episodes
    ]
    advantages, returns = zip(*found, strict=True)
    return np.concatenate(advantages), np.concatenate(returns)


def whiten(advantages: Floats, floor: float = 0.0) -> Floats:
    """Advantages [N] of a whole batch, shifted and scaled to mean 0 and deviation 1.

    floor: least deviation that is scaled to 1; a smaller one stays smaller in proportion. Where
        nothing happened all that is left is the critic's noise, and it isn't worth a step.
    """
    scale = max(float(advantages.std()) + 1e-8, floor)
    return np.asarray((advantages - advantages.mean()) / scale)


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
