"""From trajectories, as the queue delivers them, to what the update computes on. Each frame is
decoded once on each rank that needs it.

states:  step 0 .. N-1 of all episodes, then the final state of every truncated episode
samples: the N steps, each with the tokens taken, its reward and its place in an episode
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vlarl.images import Frame, ImageError
from vlarl.learning.memory_file import Bytes
from vlarl.learning.ranks import Indices
from vlarl.models.base import Processor
from vlarl.models.network import ObservationBatch
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.frames import SharedFrames
from vlarl_trainer.rollouts.trajectory_check import TrajectoryError

_HEADER = struct.Struct("<qqdI")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Experience:
    """One iteration's trajectories, as rank 0 sends them to all ranks."""

    iteration: int
    version: int
    """Policy version that the trainer holds: the newest that may have acted."""
    trajectories: Sequence[rollout_pb2.Trajectory]
    frames: SharedFrames | None = None
    """One trajectory's after another's, each with its final frame, or an empty one, at its end;
    none: the trajectories carry their frames.
    """
    rate: float = 1.0
    """Share of the policy's learning rate that its steps take."""

    def to_bytes(self) -> bytes:
        """Length-prefixed messages after a header; and where frames lie that they don't carry."""
        count = len(self.trajectories)
        parts = [_HEADER.pack(self.iteration, self.version, self.rate, count)]
        for trajectory in self.trajectories:
            encoded = trajectory.SerializeToString()
            parts += [_LENGTH.pack(len(encoded)), encoded]
        if self.frames is not None:
            parts.append(self.frames.places.tobytes())
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, encoded: bytes, shared: Bytes | None = None) -> Experience:
        """Reads what `to_bytes` wrote; shared: the bytes of frames that the trajectories don't
        carry.
        """
        iteration, version, rate, count = _HEADER.unpack_from(encoded)
        trajectories, offset = [], _HEADER.size
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(encoded, offset)
            offset += _LENGTH.size
            trajectories.append(
                rollout_pb2.Trajectory.FromString(encoded[offset : offset + length])
            )
            offset += length
        if shared is None:
            return cls(iteration, version, trajectories, rate=rate)
        places = np.frombuffer(encoded, np.int64, offset=offset).reshape(-1, 2)
        return cls(iteration, version, trajectories, SharedFrames(shared, places), rate)

    def chosen(self, places: Sequence[int]) -> Sequence[bytes]:
        """Frames by their places in the order that `frames` has."""
        if self.frames is not None:
            return self.frames.chosen(places)
        carried = [
            frame
            for one in self.trajectories
            for frame in (*(step.image for step in one.steps), one.final_image)
        ]
        return [carried[place] for place in places]


@dataclass(frozen=True)
class Episode:
    """Where an episode's steps lie among the samples."""

    start: int
    stop: int
    terminal: bool
    final_state: int | None
    """Index of the state that a truncated return is bootstrapped from."""
    group: str = ""
    """Whose episodes it is compared with; empty where there are no groups."""


@dataclass(frozen=True)
class Batch:
    """S states and N samples; sample i was taken in state i."""

    frames: Sequence[bytes]
    """[S] encoded images."""
    instructions: list[str]
    """[S]."""
    token_ids: NDArray[np.int64]
    """[N, action_dim], vocabulary ids."""
    server_logprobs: NDArray[np.float32]
    """[N, action_dim], as the policy server reported them."""
    fresh: NDArray[np.bool_]
    """[N], whether the weights that acted are the trainer's own."""
    rewards: NDArray[np.float64]
    """[N]."""
    episodes: list[Episode]


def build_batch(experience: Experience) -> Batch:
    """Lays out the trajectories' states and samples."""
    trajectories = experience.trajectories
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    instructions = [t.instruction for t in trajectories for _ in t.steps]
    episodes: list[Episode] = []
    finals: list[int] = []
    start = 0
    # In the order of `experience.frames`, which has final frames between the steps.
    places: list[int] = []
    for number, trajectory in enumerate(trajectories):
        stop = start + len(trajectory.steps)
        places += range(start + number, stop + number)
        terminal = trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
        final_state = None
        if not terminal:
            final_state = len(steps) + len(finals)
            finals.append(stop + number)
            instructions.append(trajectory.instruction)
        episodes.append(Episode(start, stop, terminal, final_state, trajectory.spec.group_id))
        start = stop
    return Batch(
        frames=experience.chosen(places + finals),
        instructions=instructions,
        token_ids=np.array([step.action.token_ids for step in steps], dtype=np.int64),
        server_logprobs=np.array([step.action.logprobs for step in steps], dtype=np.float32),
        fresh=np.array([step.action.policy_version == experience.version for step in steps]),
        rewards=np.array(
            [reward for trajectory in trajectories for reward in trajectory.scores.total]
        ),
        episodes=episodes,
    )


class Observations:
    """The states of one batch."""

    def __init__(
        self,
        frames: Sequence[bytes],
        instructions: Sequence[str],
        processor: Processor,
        device: torch.device,
    ) -> None:
        """frames, instructions: [S], encoded images and what the policy was told."""
        self._encoded = frames
        self._prepared: dict[int, Frame] = {}
        self._processor = processor
        self._device = device
        known = {text: processor.prompt(text) for text in set(instructions)}
        self._prompts = [known[text] for text in instructions]
        self.prompt_lengths: Indices = np.array([len(prompt) for prompt in self._prompts])
        """[S], each prompt's tokens."""

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, states: Indices) -> ObservationBatch:
        """Inputs of these states."""
        missing = sorted({int(state) for state in states} - self._prepared.keys())
        # Decoding and resizing release the interpreter's lock for most of their time.
        with ThreadPoolExecutor() as threads:
            encoded = [self._encoded[state] for state in missing]
            try:
                frames = list(threads.map(self._processor.frame, encoded))
            except ImageError as error:
                raise TrajectoryError(f"a recorded frame is no image: {error}") from error
        self._prepared.update(zip(missing, frames, strict=True))
        return self._processor.batch(
            np.stack([self._prepared[int(state)] for state in states]),
            [self._prompts[int(state)] for state in states],
            self._device,
        )
