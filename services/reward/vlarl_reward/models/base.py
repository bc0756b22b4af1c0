"""The seam between the reward server and a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlarl.rollout.v1 import rollout_pb2


@dataclass(frozen=True)
class Unscorable:
    """What keeps a trajectory from being scored."""

    problems: list[tuple[str, str]]
    """(field, description) pairs, at least one."""


@dataclass(frozen=True)
class NotFinite:
    """What stands for scores that must not leave: a number of theirs isn't finite."""

    cause: str
    """In one sentence; the model's fault, not the trajectory's."""


Result = rollout_pb2.RewardScores | Unscorable | NotFinite


class RewardModel(Protocol):
    """Turns finished episodes into rewards.

    The server calls `score` from one thread at a time, off its event loop, with as many
    trajectories as wait (at most `reward.batch_trajectories`), so that a learned model can score
    the steps of all of them in one forward pass.
    """

    name: str
    """`reward.model` in the configuration; stamped on every score."""
    version: str
    """Stamped on every score; of a learned model, the version of its weights."""
    needs_frames: bool
    """Whether each step of a trajectory must have its frame."""

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> Sequence[rollout_pb2.RewardScores | Unscorable]:
        """Scores of each trajectory, in order.

        Args:
            trajectories: episodes that ended, each with at least one step and an outcome.

        Returns:
            For each its rewards, where `sparse`, `total` and, if the model gives any, `dense` have
            an entry for each step; or what keeps this model from scoring it.
        """
