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
class Misjudged:
    """A score that must not leave: it holds a number that isn't finite."""

    cause: str
    """In one sentence; the model's fault, not the trajectory's."""


Result = rollout_pb2.RewardScores | Unscorable | Misjudged


class RewardModel(Protocol):
    """A reward model.

    Implementations are called from one thread at a time, off the event loop, with as many
    trajectories as wait (at most `reward.batch_trajectories`), so that a learned model can score
    the steps of all of them in one forward pass.
    """

    name: str
    """Name stamped on every score."""
    version: str
    """Version stamped on every score."""
    needs_frames: bool
    """Whether trajectories must carry their frames."""

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> Sequence[rollout_pb2.RewardScores | Unscorable]:
        """Scores of each trajectory; every list in a score has one entry for each step."""
