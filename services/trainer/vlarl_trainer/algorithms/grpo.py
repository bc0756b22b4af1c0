"""Group relative policy optimisation (arXiv 2402.03300).

    A_m(t) = (G_m(t) - mean_n G_n(t)) / (deviation_n G_n(0) + 1e-6)

or without the division, which weighs groups of little variation more ("Dr. GRPO", arXiv
2503.20783).
"""

from __future__ import annotations

from vlarl_trainer.algorithms.base import Floats, Setup
from vlarl_trainer.algorithms.groups import GroupAlgorithm


class Grpo(GroupAlgorithm):
    """Against the group's mean, in units of its deviation."""

    def __init__(self, setup: Setup) -> None:
        """See `Algorithm`."""
        grpo = setup.config.grpo
        super().__init__(grpo)
        self._divide = grpo.divide_by_deviation
        self._floor = grpo.deviation_floor * abs(setup.success_reward)

    def compare(self, returns: Floats) -> tuple[Floats, Floats]:
        """See `grpo_advantages`."""
        return grpo_advantages(returns, divide=self._divide, floor=self._floor)


def grpo_advantages(
    returns: Floats, *, divide: bool = True, floor: float = 0.0
) -> tuple[Floats, Floats]:
    """Advantages [G, T] before and after the division.

    Args:
        returns: [G, T], what each member had to go; the first column is its episode's return.
        divide: whether to divide by the deviation of the episodes' returns.
        floor: least deviation that is divided by.
    """
    raw = returns - returns.mean(axis=0)
    if not divide:
        return raw, raw
    return raw, raw / max(float(returns[:, 0].std()) + 1e-6, floor)
