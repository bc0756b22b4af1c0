"""What makes a trajectory one to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vlarl.errors import FatalError
from vlarl.rollout.v1 import rollout_pb2


class TrajectoryError(FatalError):
    """A trajectory that must not be learned from; the message names the episode."""


@dataclass(frozen=True)
class TrajectoryCheck:
    """What every trajectory of an iteration must agree with."""

    version: int
    """Policy version that the trainer holds."""
    staleness: int
    """How many versions behind an action may be."""
    temperature: float
    action_ids: range
    action_dim: int

    def check(self, trajectories: Iterable[rollout_pb2.Trajectory]) -> None:
        """Raises TrajectoryError for the first trajectory that must not be learned from."""
        for trajectory in trajectories:
            fault = next(iter(self._trajectory_faults(trajectory)), None)
            if fault:
                worker = f" of worker {trajectory.worker}" if trajectory.worker else ""
                raise TrajectoryError(f"episode {trajectory.spec.episode_id}{worker}: {fault}")

    def _trajectory_faults(self, trajectory: rollout_pb2.Trajectory) -> Iterable[str]:
        if not trajectory.steps:
            yield "it has no steps"
        if trajectory.outcome == rollout_pb2.OUTCOME_UNSPECIFIED:
            yield "it doesn't say how it ended"
        if trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT and not trajectory.final_image:
            yield "it is truncated and lacks the frame of its final state"
        if not math.isclose(trajectory.spec.temperature, self.temperature, rel_tol=1e-6):
            yield (
                f"it was sampled at temperature {trajectory.spec.temperature:g}, the trainer "
                f"learns at {self.temperature:g}"
            )
        if len(trajectory.scores.total) != len(trajectory.steps):
            yield f"{len(trajectory.scores.total)} rewards for {len(trajectory.steps)} steps"
        if not all(math.isfinite(reward) for reward in trajectory.scores.total):
            yield "a reward is not finite"
        for index, step in enumerate(trajectory.steps):
            for fault in self._step_faults(step):
                yield f"step {index}: {fault}"

    def _step_faults(self, step: rollout_pb2.Step) -> Iterable[str]:
        action = step.action
        if not step.image:
            yield "it has no frame"
        if len(action.token_ids) != self.action_dim or len(action.logprobs) != self.action_dim:
            yield (
                f"{len(action.token_ids)} tokens and {len(action.logprobs)} log-probs instead of "
                f"{self.action_dim} each"
            )
        if any(token not in self.action_ids for token in action.token_ids):
            yield f"tokens {list(action.token_ids)} are not all action tokens"
        if not all(math.isfinite(logprob) and logprob <= 1e-6 for logprob in action.logprobs):
            yield f"log-probs {list(action.logprobs)}"
        if not self.version - self.staleness <= action.policy_version <= self.version:
            yield (
                f"policy version {action.policy_version} acted, the trainer holds {self.version}"
                f" and accepts {self.staleness} behind it"
            )
