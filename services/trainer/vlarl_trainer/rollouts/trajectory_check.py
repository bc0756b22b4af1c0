"""What makes a trajectory one to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlarl.answers import executed_actions
from vlarl.errors import FatalError
from vlarl.models.spec import PolicySpec
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.frames import SharedFrames, camera_count, carried_frames


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
    chunk: int = 1
    """C, the control steps of an answer."""
    images: int = 1
    """I, the cameras that the policy sees."""
    proprio_dim: int = 0
    """P, the numbers of proprioception that it reads."""

    @classmethod
    def of_policy(
        cls, spec: PolicySpec, *, version: int, staleness: int, temperature: float
    ) -> TrajectoryCheck:
        """Of trajectories in which this policy acted."""
        return cls(
            version,
            staleness,
            temperature,
            action_ids=spec.action_ids,
            action_dim=spec.action_dim,
            chunk=spec.chunk,
            images=len(spec.cameras),
            proprio_dim=spec.proprio_dim,
        )

    def check(
        self, trajectories: Iterable[rollout_pb2.Trajectory], frames: SharedFrames | None = None
    ) -> None:
        """Raises TrajectoryError for the first trajectory that must not be learned from.

        frames: those that the trajectories don't carry, in the order that an `Experience` has.
        """
        place = 0
        for trajectory in trajectories:
            if frames is None:
                lengths = np.array([len(frame) for frame in carried_frames(trajectory)])
            else:
                count = (len(trajectory.steps) + 1) * camera_count(trajectory)
                lengths = frames.places[place : place + count, 1]
                place += count
            states = lengths.reshape(-1, camera_count(trajectory)).tolist()
            seen = [all(of_cameras) for of_cameras in states]
            fault = next(iter(self._trajectory_faults(trajectory, seen)), None)
            if fault:
                worker = f" of worker {trajectory.worker}" if trajectory.worker else ""
                raise TrajectoryError(f"episode {trajectory.spec.episode_id}{worker}: {fault}")

    def _trajectory_faults(
        self, trajectory: rollout_pb2.Trajectory, seen: Sequence[bool]
    ) -> Iterable[str]:
        """seen: whether each state, the final one last, has all of its frames."""
        truncated = trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT
        if not trajectory.steps:
            yield "it has no steps"
        if trajectory.outcome == rollout_pb2.OUTCOME_UNSPECIFIED:
            yield "it doesn't say how it ended"
        if (found := camera_count(trajectory)) != self.images:
            named = f" ({', '.join(trajectory.cameras)})" if trajectory.cameras else ""
            yield f"frames a state: {found}{named}, and the policy sees {self.images}"
        if truncated and not seen[-1]:
            yield f"it is truncated and lacks {self._a_frame} of its final state"
        if truncated and (fault := self._proprio_fault(trajectory.final_robot_state)):
            yield f"final state: {fault}"
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
            if not seen[index]:
                yield f"step {index}: it has no frame{' of a camera' * (self.images > 1)}"
            for fault in self._step_faults(step):
                yield f"step {index}: {fault}"

    def _step_faults(self, step: rollout_pb2.Step) -> Iterable[str]:
        action = step.action
        wanted = self.chunk * self.action_dim
        if len(action.token_ids) != wanted or len(action.logprobs) != wanted:
            yield (
                f"{len(action.token_ids)} tokens and {len(action.logprobs)} log-probs instead of "
                f"{wanted} each"
            )
        if executed_actions(step) > self.chunk:
            yield f"{step.executed} of its actions were executed, and an answer has {self.chunk}"
        if fault := self._proprio_fault(step.robot_state):
            yield fault
        if any(token not in self.action_ids for token in action.token_ids):
            yield f"tokens {list(action.token_ids)} are not all action tokens"
        if not all(math.isfinite(logprob) and logprob <= 1e-6 for logprob in action.logprobs):
            yield f"log-probs {list(action.logprobs)}"
        if not self.version - self.staleness <= action.policy_version <= self.version:
            yield (
                f"policy version {action.policy_version} acted, the trainer holds {self.version}"
                f" and accepts {self.staleness} behind it"
            )

    @property
    def _a_frame(self) -> str:
        return "the frame" if self.images == 1 else "a camera's frame"

    def _proprio_fault(self, arm: rollout_pb2.RobotState) -> str:
        """What is wrong with a state's proprioception; empty: nothing, or the policy reads none."""
        if not self.proprio_dim:
            return ""
        if len(arm.proprio) != self.proprio_dim:
            return (
                f"it has {len(arm.proprio)} numbers of proprioception, the policy reads "
                f"{self.proprio_dim}"
            )
        return "" if all(map(math.isfinite, arm.proprio)) else "proprioception is not finite"
