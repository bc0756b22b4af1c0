"""What an algorithm is: how an iteration's episodes become advantages, and what else it learns.

    features ──▶ estimate ──▶ terms, for each micro-batch ──▶ finish
    (of states)  (advantages) (the policy's loss)             (PPO: the critic)

`Learner` calls all of them, on every rank alike. Episodes are ordered by rollouts/plan.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlarl.config import AlgorithmConfig, TrainerConfig
from vlarl.learning.ranks import Ranks
from vlarl.learning.trainable import LoraPolicy, States
from vlarl_trainer.algorithms.surrogate import PolicyTerms, clipped_policy_terms
from vlarl_trainer.batch import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """What N samples were worth."""

    advantages: Floats
    """[N], that the policy learns from."""
    raw: Floats
    """[N], before they were scaled."""
    returns: Floats
    """[N], of each sample, from there on."""


def discounted_sums(values: Floats, factors: float | Floats) -> Floats:
    """[T] of values [T >= 1]: S_t = x_t + f_t S_t+1. Of rewards and discounts, the returns.

    factors: of each step [T], or of all.
    """
    sums = np.empty_like(values)
    each = np.broadcast_to(factors, values.shape)
    running = 0.0
    for t in reversed(range(len(values))):
        running = values[t] + each[t] * running
        sums[t] = running
    return sums


@dataclass(frozen=True)
class Setup:
    """What an algorithm is made from."""

    config: TrainerConfig
    policy: LoraPolicy
    ranks: Ranks
    """Which learn together."""
    seed: int
    """The run's."""
    success_reward: float
    """The scale by which advantages are large or small."""


class Algorithm(ABC):
    """How the policy learns. Children are made from a `Setup`."""

    def __init__(
        self,
        config: AlgorithmConfig,
        *,
        view: Literal["base", "policy"] | None = None,
        looks_at_ends: bool = False,
    ) -> None:
        """Says what it has to be shown.

        Args:
            config: the algorithm's section.
            view: whose view of each state it needs: the policy's before it was trained, or as it
                is; none: nobody's, so no pass is made for it.
            looks_at_ends: whether it needs the states in which episodes were cut off, too.
        """
        self.config = config
        self.view = view
        self.looks_at_ends = looks_at_ends

    def features(self, states: States) -> Tensor:
        """What it keeps of B states that it is shown: float32 [B, F]."""
        raise NotImplementedError(f"{type(self).__name__} asked for no view of states")

    def values(self, features: Tensor) -> Tensor:
        """Its critic's values of S states, from `features`: float32 [S] on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no critic")

    @abstractmethod
    def estimate(self, batch: Batch, features: Tensor | None) -> Estimate:
        """Advantages of the batch.

        Args:
            batch: N samples in S states.
            features: [S', F], of the states looked at: those of the N samples, then, if asked for,
                those in which episodes were cut off; none: nothing was asked for.
        """

    def shares(self, batch: Batch) -> Floats:
        """What each sample [N] weighs in the mean of losses; 1 on average. By default all executed
        actions weigh the same.
        """
        return np.asarray(batch.executed / batch.executed.mean())

    def learns_policy(self, iteration: int, estimate: Estimate) -> bool:  # noqa: ARG002
        """Whether the policy takes steps in this iteration, counted from 0, of this estimate."""
        return True

    def terms(
        self,
        new: Tensor,
        old: Tensor,
        start: Tensor,
        advantages: Tensor,
        weights: Tensor | None,
        executed: Tensor | None,
    ) -> PolicyTerms:
        """The loss of B answers, see `clipped_policy_terms`."""
        return clipped_policy_terms(
            new,
            old,
            start,
            advantages,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            ratio=self.config.ratio_for(1 if executed is None else executed.shape[1]),
            weights=weights,
            executed=executed,
        )

    def finish(
        self,
        iteration: int,  # noqa: ARG002
        features: Tensor | None,  # noqa: ARG002
        estimate: Estimate,  # noqa: ARG002
    ) -> dict[str, float]:
        """What else is learned once the policy has; its metrics, by their names in
        record/metrics.py.
        """
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it, on rank 0; names begin with what they belong to."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027 - most keep nothing
        """Takes what `tensors` gave over, on every rank.

        Raises:
            ResumeError: they are of other sizes.
        """
