"""Watches for a policy that pleases the reward model without solving its tasks.

Additive dense rewards can be farmed. Where they are earned honestly, an episode's sum of them goes
with its success; so what is watched is their correlation over the latest episodes. The sum of the
potential form is a matter of an episode's first and last state, whatever came between: it can't be
farmed, and says nothing of success.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from vlarl.config import ProcessRewardConfig, RewardConfig, RunConfig
from vlarl.errors import FatalError
from vlarl.rollout.v1 import rollout_pb2

_LOG = logging.getLogger(__name__)

_FEWEST = 30
"""Episodes before a correlation is worth a word."""


class RewardHackedError(FatalError):
    """Dense rewards and success have parted."""


def hovering_pays(config: RunConfig) -> str | None:
    """What to say of a coefficient with which staying where the model gives a high probability may
    be worth more than success; None where it can't be, or where nobody knows how long an episode
    lasts.

    A model that gives a state P pays c * P for each action there. Discounted that sums to
    c * P / (1 - gamma) where the value of what a limit cut stands for ever after, and to
    c * P * (1 - gamma^N) / (1 - gamma) where N actions are all there is.
    """
    reward, algorithm = config.reward, config.trainer.chosen
    if not isinstance(reward, ProcessRewardConfig) or reward.form != "additive":
        return None
    if not reward.coefficient:
        return None
    until = "for ever"
    actions = math.inf
    if algorithm.limit_is_terminal:
        if (limit := config.actions_of_an_episode) is None:
            return None
        actions, until = limit, f"for the {limit} actions of an episode"
    weight = _sum_of_discounts(algorithm.gamma, actions)
    if reward.coefficient * weight <= reward.success_reward:
        return None
    bound = max(reward.success_reward, 0.0) / weight
    lower = f"lower it to {bound:.2g} or less, or " if bound else ""
    return (
        f"reward.coefficient, {reward.coefficient:g}, makes hovering worth more than success where "
        f"the reward model says more than {bound / reward.coefficient:.2g} {until} "
        f"(reward.success_reward is {reward.success_reward:g}): {lower}set "
        'reward.form = "potential" (docs/reward.md)'
    )


def _sum_of_discounts(gamma: float, actions: float) -> float:
    """sum_{t < actions} gamma^t."""
    if gamma == 1.0:
        return actions
    return float((1.0 - gamma**actions) / (1.0 - gamma))


class RewardWatch:
    """Measures an iteration's dense rewards, and watches those that can be farmed."""

    def __init__(self, config: RewardConfig) -> None:
        self._correlations = None
        if isinstance(config, ProcessRewardConfig) and config.form == "additive":
            self._correlations = _Correlations(config)

    def record(self, trajectories: Sequence[rollout_pb2.Trajectory]) -> dict[str, float]:
        """Takes an iteration's episodes in; returns its metrics, by their names in
        record/metrics.py. There are none where the reward model gives no dense rewards.

        Raises:
            RewardHackedError: the correlation has fallen below `reward.stop_below`.
        """
        scored = [one for one in trajectories if one.scores.dense]
        if not scored:
            return {}
        returns = np.array([sum(one.scores.dense) for one in scored])
        solved = np.array([one.outcome == rollout_pb2.OUTCOME_SUCCESS for one in scored])
        lengths = np.array([len(one.steps) for one in scored])
        total = sum(abs(value) for one in scored for value in one.scores.total)
        dense = sum(
            abs(whole - sparse)
            for one in scored
            for whole, sparse in zip(one.scores.total, one.scores.sparse, strict=True)
        )
        metrics = {
            "dense_return": float(returns.mean()),
            "dense_share": dense / total if total else 0.0,
        }
        for name, chosen in (("success", solved), ("failure", ~solved)):
            if chosen.any():
                metrics[f"dense_return_{name}"] = float(returns[chosen].mean())
        if self._correlations is not None:
            metrics |= self._correlations.record(returns, solved, lengths)
        return metrics


class _Correlations:
    """What dense returns go with, over the latest episodes from the trainer's start on."""

    def __init__(self, config: ProcessRewardConfig) -> None:
        self._config = config
        self._episodes: deque[tuple[float, float, float]] = deque(maxlen=config.watch_episodes)

    def record(
        self, returns: np.ndarray, solved: np.ndarray, lengths: np.ndarray
    ) -> dict[str, float]:
        """Takes [N] episodes in; returns the correlations that there are, by metric."""
        self._episodes += zip(returns.tolist(), solved.tolist(), lengths.tolist(), strict=True)
        returns, solved, lengths = np.array(self._episodes, dtype=np.float64).T
        metrics = {}
        if (with_length := correlation(returns, lengths)) is not None:
            metrics["dense_length_correlation"] = with_length
        if (with_success := correlation(returns, solved)) is not None:
            metrics["dense_success_correlation"] = with_success
            self._check(with_success)
        return metrics

    def _check(self, found: float) -> None:
        """Warns, or stops the run, where return and success have parted."""
        if len(self._episodes) < _FEWEST:
            return
        says = (
            f"the reward model's sum over an episode and its success correlate by {found:.2f} over "
            f"the latest {len(self._episodes)} episodes"
        )
        if self._config.stop_below is not None and found < self._config.stop_below:
            raise RewardHackedError(
                f"{says}, less than reward.stop_below, {self._config.stop_below:g}: the policy "
                "farms it. Look at films (vlarl eval --videos), then lower reward.coefficient, try "
                'reward.form = "potential", or train the model on these rollouts'
            )
        if found < self._config.warn_below:
            _LOG.warning("reward hacking? %s", says)


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's, of two [N]; None where one of them doesn't vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    found = float(np.corrcoef(one, other)[0, 1])
    return found if math.isfinite(found) else None
