"""The sparse outcome reward."""

from __future__ import annotations

from collections.abc import Sequence

from vlarl.rollout.v1 import rollout_pb2


class OutcomeReward:
    """r_t = `success_reward` at the step that solved the task, 0 at every other.

    The reward comes from whether the simulator found the task solved, not from summed simulator
    rewards, so that a task which stays solved for several control steps counts once.
    """

    name = "outcome"
    version = "1"
    needs_frames = False

    def __init__(self, success_reward: float) -> None:
        self._success_reward = success_reward

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> list[rollout_pb2.RewardScores]:
        """Scores of each trajectory, in order."""
        return [self._score(trajectory) for trajectory in trajectories]

    def _score(self, trajectory: rollout_pb2.Trajectory) -> rollout_pb2.RewardScores:
        sparse = [0.0] * len(trajectory.steps)
        if trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS:
            sparse[-1] = self._success_reward
        return rollout_pb2.RewardScores(
            model=self.name, version=self.version, sparse=sparse, total=sparse
        )
