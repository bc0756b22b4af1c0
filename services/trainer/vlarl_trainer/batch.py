"""From trajectories, as the queue delivers them, to what the update computes on.

states:  step 0 .. N-1 of all episodes, then the final state of every truncated episode
samples: the N steps, each with the tokens taken, its reward and its place in an episode
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlarl.errors import FatalError
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.algorithms.advantages import Floats, generalised_advantages

_HEADER = struct.Struct("<qqI")
_LENGTH = struct.Struct("<Q")


class TrajectoryError(FatalError):
    """A trajectory that must not be learned from; the message names the episode."""


@dataclass(frozen=True)
class Experience:
    """One iteration's trajectories, as rank 0 sends them to all ranks."""

    iteration: int
    version: int
    """Policy version that the trainer holds: the newest that may have acted."""
    trajectories: Sequence[rollout_pb2.Trajectory]

    def to_bytes(self) -> bytes:
        """Length-prefixed messages after a header."""
        parts = [_HEADER.pack(self.iteration, self.version, len(self.trajectories))]
        for trajectory in self.trajectories:
            encoded = trajectory.SerializeToString()
            parts += [_LENGTH.pack(len(encoded)), encoded]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, encoded: bytes) -> Experience:
        """Reads what `to_bytes` wrote."""
        iteration, version, count = _HEADER.unpack_from(encoded)
        trajectories, offset = [], _HEADER.size
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(encoded, offset)
            offset += _LENGTH.size
            trajectories.append(
                rollout_pb2.Trajectory.FromString(encoded[offset : offset + length])
            )
            offset += length
        return cls(iteration, version, trajectories)


@dataclass(frozen=True)
class Episode:
    """Where an episode's steps lie among the samples."""

    start: int
    stop: int
    terminal: bool
    final_state: int | None
    """Index of the state that a truncated return is bootstrapped from."""


@dataclass(frozen=True)
class Batch:
    """S states and N samples; sample i was taken in state i."""

    frames: list[bytes]
    """[S] encoded images."""
    instructions: list[str]
    """[S]."""
    token_ids: NDArray[np.int64]
    """[N, action_dim], vocabulary ids."""
    server_logprobs: NDArray[np.float32]
    """[N, action_dim], as the policy server reported them."""
    fresh: NDArray[np.bool_]
    """[N], whether the weights that acted are the trainer's own."""
    rewards: Floats
    """[N]."""
    episodes: list[Episode]

    def advantages(
        self, values: Floats, gamma: float, gae_lambda: float, *, limit_is_terminal: bool = False
    ) -> tuple[Floats, Floats]:
        """Advantages [N], not whitened, and returns [N], from the critic's values [S].

        limit_is_terminal: whether nothing follows an episode that ended by its step limit, either.
        """
        found = [
            generalised_advantages(
                self.rewards[episode.start : episode.stop],
                values[episode.start : episode.stop],
                0.0 if episode.final_state is None else float(values[episode.final_state]),
                terminal=episode.terminal or limit_is_terminal,
                gamma=gamma,
                gae_lambda=gae_lambda,
            )
            for episode in self.episodes
        ]
        advantages, returns = zip(*found, strict=True)
        return np.concatenate(advantages), np.concatenate(returns)


def build_batch(experience: Experience) -> Batch:
    """Lays out the trajectories' states and samples."""
    trajectories = experience.trajectories
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    frames = [step.image for step in steps]
    instructions = [t.instruction for t in trajectories for _ in t.steps]
    episodes, start = [], 0
    for trajectory in trajectories:
        stop = start + len(trajectory.steps)
        terminal = trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
        final_state = None
        if not terminal:
            final_state = len(frames)
            frames.append(trajectory.final_image)
            instructions.append(trajectory.instruction)
        episodes.append(Episode(start, stop, terminal, final_state))
        start = stop
    return Batch(
        frames=frames,
        instructions=instructions,
        token_ids=np.array([step.action.token_ids for step in steps], dtype=np.int64),
        server_logprobs=np.array([step.action.logprobs for step in steps], dtype=np.float32),
        fresh=np.array([step.action.policy_version == experience.version for step in steps]),
        rewards=np.array(
            [reward for trajectory in trajectories for reward in trajectory.scores.total]
        ),
        episodes=episodes,
    )


@dataclass(frozen=True)
class Expectation:
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
