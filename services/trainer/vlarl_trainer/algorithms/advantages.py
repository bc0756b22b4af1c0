"""Generalised advantage estimation (Schulman et al. 2016), episode by episode."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    """Advantages and returns of one episode.

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
