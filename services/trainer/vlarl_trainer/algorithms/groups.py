"""Episodes of a group against each other: the same task and placement, other draws.

    G_m(t)  = r_t + gamma^e_t G_m(t + 1)          of member m, from answer t on   discounted_sums
    A_m(t)  = G_m(t) - what the group had to go at t                              grpo.py, rloo.py

with e_t the actions of answer t that were executed, 1 of a policy without chunks. A member that has
ended has nothing to go. With `credit = "episode"` all actions of an episode get
A_m(0). There is no critic, so no state's value, and the step limit is an end.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vlarl.config import GroupsConfig
from vlarl_trainer.algorithms.base import Algorithm, Estimate, Floats, discounted_sums
from vlarl_trainer.batch import Batch, Episode


class GroupAlgorithm(Algorithm):
    """Advantages are against the other episodes of a group."""

    def __init__(self, config: GroupsConfig) -> None:
        """Sees no states."""
        super().__init__(config)
        self._groups = config

    @abstractmethod
    def compare(self, returns: Floats) -> tuple[Floats, Floats]:
        """Advantages [G, T] of G >= 2 members at T steps, before they are scaled and after.

        returns: [G, T], what each member had to go from each step on; the first column is the
            return of its episode.
        """

    def estimate(self, batch: Batch, features: Tensor | None) -> Estimate:  # noqa: ARG002
        """Of all groups, each by itself."""
        returns = np.zeros(len(batch.rewards))
        raw, advantages = np.zeros_like(returns), np.zeros_like(returns)
        discounts = batch.discounts(self._groups.gamma)
        for members in groups_of(batch):
            to_go = [
                discounted_sums(
                    batch.rewards[one.start : one.stop], discounts[one.start : one.stop]
                )
                for one in members
            ]
            table = np.zeros((len(members), max(map(len, to_go))))
            for row, one in zip(table, to_go, strict=True):
                row[: len(one)] = one
            if self._groups.credit == "episode":
                table[:] = table[:, :1]
            found = self.compare(table)
            for number, member in enumerate(members):
                steps = slice(member.start, member.stop)
                returns[steps] = to_go[number]
                raw[steps], advantages[steps] = (
                    each[number, : len(to_go[number])] for each in found
                )
        return Estimate(advantages, raw, returns)

    def learns_policy(self, iteration: int, estimate: Estimate) -> bool:  # noqa: ARG002
        """Not where all groups went alike: a step would follow the moments of former ones."""
        held = self.config.entropy_coefficient or self.config.kl_coefficient
        return bool(estimate.advantages.any() or held)

    def shares(self, batch: Batch) -> Floats:
        """Equal for all executed actions, or for all episodes and then for each one's actions."""
        if self._groups.average == "actions":
            return super().shares(batch)
        shares = batch.executed.astype(np.float64)
        for one in batch.episodes:
            shares[one.start : one.stop] /= batch.executed[one.start : one.stop].sum()
        return shares * (len(shares) / len(batch.episodes))


def groups_of(batch: Batch) -> Sequence[Sequence[Episode]]:
    """The batch's episodes by their groups.

    Raises:
        ValueError: one is alone in its group, with nothing to compare it with.
    """
    groups = defaultdict(list)
    for episode in batch.episodes:
        groups[episode.group].append(episode)
    for name, members in groups.items():
        if len(members) < 2:
            raise ValueError(f"group {name!r} has one episode, and a comparison takes two")
    return list(groups.values())
