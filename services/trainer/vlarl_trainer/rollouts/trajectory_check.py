"""What makes a trajectory one to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlarl.errors import FatalError
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.frames import SharedFrames


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

    def check(
        self, trajectories: Iterable[rollout_pb2.Trajectory], frames: SharedFrames | None = None
    ) -> None:
        """Raises TrajectoryError for the first trajectory that must not be learned from.

        frames: those that the trajectories don't carry, in the order that an `Experience` has.
        """
        place = 0
        for trajectory in trajectories:
            lengths = _frame_lengths(trajectory)
            if frames is not None:
                lengths = frames.places[place : place + len(lengths), 1].tolist()
                place += len(lengths)
            fault = next(iter(self._trajectory_faults(trajectory, lengths)), None)
            if fault:
                worker = f" of worker {trajectory.worker}" if trajectory.worker else ""
                raise TrajectoryError(f"episode {trajectory.spec.episode_id}{worker}: {fault}")

    def _trajectory_faults(
        self, trajectory: rollout_pb2.Trajectory, lengths: Sequence[int]
    ) -> Iterable[str]:
        if not trajectory.steps:
            yield "it has no steps"
        if trajectory.outcome == rollout_pb2.OUTCOME_UNSPECIFIED:
            yield "it doesn't say how it ended"
        if trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT and not lengths[-1]:
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
            if not lengths[index]:
                yield f"step {index}: it has no frame"
            for fault in self._step_faults(step):
                yield f"step {index}: {fault}"

    def _step_faults(self, step: rollout_pb2.Step) -> Iterable[str]:
        action = step.action
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


def _frame_lengths(trajectory: rollout_pb2.Trajectory) -> list[int]:
    """Bytes of each step's frame and, at the end, of the final one; 0: there is none."""
    return [*(len(step.image) for step in trajectory.steps), len(trajectory.final_image)]
