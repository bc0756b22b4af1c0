"""REINFORCE, each episode against the mean of the others (RLOO, arXiv 2402.14740).

A_m(t) = G_m(t) - mean_{n != m} G_n(t)
"""

from __future__ import annotations

import numpy as np

from vlarl_trainer.algorithms.base import Floats, Setup
from vlarl_trainer.algorithms.groups import GroupAlgorithm


class Rloo(GroupAlgorithm):
    """Against the mean of the group's others."""

    def __init__(self, setup: Setup) -> None:
        """See `Algorithm`."""
        super().__init__(setup.config.rloo)

    def compare(self, returns: Floats) -> tuple[Floats, Floats]:
        """See `rloo_advantages`."""
        advantages = rloo_advantages(returns)
        return advantages, advantages


def rloo_advantages(returns: Floats) -> Floats:
    """Advantages [G, T] of what each of G >= 2 members had to go [G, T]."""
    members = len(returns)
    return np.asarray((returns - returns.mean(axis=0)) * (members / (members - 1)))
