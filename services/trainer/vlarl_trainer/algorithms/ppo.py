"""Proximal policy optimisation with a critic, in the order in which an iteration needs it.

    delta_t = r_t + gamma^e_t V(s_t+1) - V(s_t)                         generalised_advantages
    A_t     = delta_t + gamma^e_t lambda A_t+1
    R_t     = A_t + V(s_t)
    A       = (A - mean A) / max(deviation A, floor)                    whiten

with e_t the actions of answer t that were executed, 1 of a policy without chunks. The policy's
loss is in surrogate.py, the critic's in critic.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vlarl.learning.checkpoints import gathered, take_over
from vlarl.learning.seeds import Stream, generator_for
from vlarl.learning.trainable import States
from vlarl_trainer.algorithms.base import Algorithm, Estimate, Floats, Setup, discounted_sums
from vlarl_trainer.algorithms.critic import Critic
from vlarl_trainer.batch import Batch


class Ppo(Algorithm):
    """Advantages are against a critic's values."""

    def __init__(self, setup: Setup) -> None:
        """Makes a critic that gives every state the value 0."""
        self._ppo, self._critic_config = setup.config.ppo, setup.config.critic
        super().__init__(
            self._ppo,
            view=self._critic_config.features,
            looks_at_ends=not self._ppo.limit_is_terminal,
        )
        self._ranks, self._seed = setup.ranks, setup.seed
        self._floor = self._ppo.whiten_floor * abs(setup.success_reward)
        self.critic = Critic(
            self._critic_config,
            feature_width=setup.policy.feature_width,
            patches=setup.policy.patches,
            max_grad_norm=self._ppo.max_grad_norm,
            seed=setup.seed,
            device=setup.ranks.device,
        )

    def features(self, states: States) -> Tensor:
        """What the critic sees of B states: [B, F]."""
        return self.critic.features(*states)

    def values(self, features: Tensor) -> Tensor:
        """The critic's values of S states: float32 [S] on the CPU."""
        return self.critic.values(features)

    def estimate(self, batch: Batch, features: Tensor | None) -> Estimate:
        """By generalised advantage estimation from the critic's values of the states looked at."""
        assert features is not None  # noqa: S101 - they were asked for
        values = self._ranks.broadcast(self.values(features))
        raw, returns = self._advantages(batch, values, self._ppo.gae_lambda)
        if (critic_lambda := self._critic_config.gae_lambda) is not None:
            _, returns = self._advantages(batch, values, critic_lambda)
        whitened = whiten(raw, self._floor) if self._ppo.whiten_advantages else raw
        return Estimate(whitened, raw, returns)

    def _advantages(self, batch: Batch, values: Tensor, gae_lambda: float) -> tuple[Floats, Floats]:
        """Advantages [N] and returns [N] by the critic's values of the states looked at."""
        known = np.zeros(len(batch.instructions))
        known[: len(values)] = values.double().numpy()
        return batch_advantages(
            batch,
            known,
            self._ppo.gamma,
            gae_lambda,
            limit_is_terminal=self._ppo.limit_is_terminal,
        )

    def learns_policy(self, iteration: int, estimate: Estimate) -> bool:  # noqa: ARG002
        """Not while the critic warms up."""
        return not self._warms_up(iteration)

    def _warms_up(self, iteration: int) -> bool:
        return iteration < self._critic_config.warmup_iterations

    def finish(
        self, iteration: int, features: Tensor | None, estimate: Estimate
    ) -> dict[str, float]:
        """Rank 0 trains the critic; the others get its values, not its weights."""
        if not self._ranks.first:
            return {}
        assert features is not None  # noqa: S101 - they were asked for
        critic = self._critic_config
        epochs = critic.epochs or self._ppo.epochs
        report = self.critic.fit(
            features[: len(estimate.returns)],
            torch.from_numpy(estimate.returns),
            epochs=critic.warmup_epochs if self._warms_up(iteration) else epochs,
            mini_batch=self._ppo.mini_batch,
            generator=generator_for(self._seed, Stream.CRITIC_ORDER, iteration),
        )
        return vars(report)

    def tensors(self) -> dict[str, Tensor]:
        """The critic's weights and moments."""
        tensors = gathered(self.critic.head.state_dict(), "critic")
        return tensors | self.critic.optimizer.tensors("critic_optimizer")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes the critic over."""
        take_over(self.critic.head.state_dict(), tensors, "critic", section="trainer.critic")
        self.critic.optimizer.restore(tensors, "critic_optimizer")


def generalised_advantages(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_value: float,
    *,
    terminal: bool,
    gamma: float | Floats,
    gae_lambda: float,
) -> tuple[Floats, Floats]:
    """Advantages and returns of one episode (GAE, Schulman et al. 2016).

        delta_t = r_t + gamma_t * V_{t+1} - V_t
        A_t     = delta_t + gamma_t * lambda * A_{t+1}
        R_t     = A_t + V_t

    The recursion ends with the episode. A terminal episode (success) has no value after its last
    step; a truncated one (time limit) goes on in principle, so the value of the state it was cut
    at stands in for what would have followed.

    Args:
        rewards: [T], T >= 1.
        values: [T], the critic's V(s_0) .. V(s_{T-1}).
        bootstrap_value: V(s_T); ignored where the episode is terminal.
        terminal: whether s_T is terminal.
        gamma: discount, of each step [T] or of all.
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
    advantages = discounted_sums(delta, gamma * gae_lambda)
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

    Args:
        batch: N samples in S states.
        values: [S].
        gamma: discount of an action; a sample is discounted by as many as were executed of it.
        gae_lambda: lambda, of a sample.
        limit_is_terminal: whether nothing follows an episode that ended by its step limit, either.
    """
    discounts = batch.discounts(gamma)
    found = [
        generalised_advantages(
            batch.rewards[episode.start : episode.stop],
            values[episode.start : episode.stop],
            0.0 if episode.final_state is None else float(values[episode.final_state]),
            terminal=episode.terminal or limit_is_terminal,
            gamma=discounts[episode.start : episode.stop],
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
