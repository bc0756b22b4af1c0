"""From trajectories, as the queue delivers them, to what the update computes on. Each frame is
decoded once on each rank that needs it.

states:  step 0 .. N-1 of all episodes, then the final state of every truncated episode
samples: the N steps, each with the tokens taken, its reward and its place in an episode

A sample is one answer of the policy, for one control step or for a chunk of them. A state has one
frame of each of the policy's I cameras.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vlarl.answers import executed_actions
from vlarl.images import Frame, ImageError
from vlarl.learning.memory_file import Bytes
from vlarl.learning.ranks import Indices
from vlarl.models.base import Processor
from vlarl.models.network import ObservationBatch
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.frames import SharedFrames, camera_count, carried_frames
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
    """One trajectory's after another's, each as rollouts/frames.py says; none: the trajectories
    carry their frames.
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
        carried = [frame for one in self.trajectories for frame in carried_frames(one)]
        return [carried[place] for place in places]


class Proprio(NamedTuple):
    """The robot's own state, as it was recorded."""

    values: Sequence[float]
    """[P], in the units of a dataset."""
    unnorm_key: str
    """Whose statistics normalise it, as they did for the policy that acted."""


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
    """[S * I] encoded images, one state's after another's."""
    instructions: list[str]
    """[S]."""
    proprio: list[Proprio]
    """[S]."""
    token_ids: NDArray[np.int64]
    """[N, K], vocabulary ids."""
    server_logprobs: NDArray[np.float32]
    """[N, K], as the policy server reported them."""
    executed: NDArray[np.int64]
    """[N], actions of the answer that were executed, at least 1."""
    fresh: NDArray[np.bool_]
    """[N], whether the weights that acted are the trainer's own."""
    rewards: NDArray[np.float64]
    """[N]."""
    episodes: list[Episode]

    def discounts(self, gamma: float) -> NDArray[np.float64]:
        """Of each sample [N], what the state after it is worth less, by an action's discount."""
        return np.asarray(gamma**self.executed)


def build_batch(experience: Experience) -> Batch:
    """Lays out the trajectories' states and samples."""
    trajectories = experience.trajectories
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    instructions = [t.instruction for t in trajectories for _ in t.steps]
    proprio = [_proprio(t, step.robot_state) for t in trajectories for step in t.steps]
    episodes: list[Episode] = []
    start = begin = 0
    # In the order of `experience.frames`, which has final frames between the steps.
    places: list[int] = []
    finals: list[int] = []
    for trajectory in trajectories:
        stop, cameras = start + len(trajectory.steps), camera_count(trajectory)
        end = begin + len(trajectory.steps) * cameras
        places += range(begin, end)
        begin = end + cameras
        terminal = trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
        final_state = None
        if not terminal:
            final_state = len(instructions)
            finals += range(end, begin)
            instructions.append(trajectory.instruction)
            proprio.append(_proprio(trajectory, trajectory.final_robot_state))
        episodes.append(Episode(start, stop, terminal, final_state, trajectory.spec.group_id))
        start = stop
    return Batch(
        frames=experience.chosen(places + finals),
        instructions=instructions,
        proprio=proprio,
        token_ids=np.array([step.action.token_ids for step in steps], dtype=np.int64),
        server_logprobs=np.array([step.action.logprobs for step in steps], dtype=np.float32),
        executed=np.array([executed_actions(step) for step in steps], dtype=np.int64),
        fresh=np.array([step.action.policy_version == experience.version for step in steps]),
        rewards=np.array(
            [reward for trajectory in trajectories for reward in trajectory.scores.total]
        ),
        episodes=episodes,
    )


def _proprio(trajectory: rollout_pb2.Trajectory, arm: rollout_pb2.RobotState) -> Proprio:
    return Proprio(arm.proprio, trajectory.spec.unnorm_key)


class Observations:
    """The states of one batch."""

    def __init__(
        self,
        frames: Sequence[bytes],
        instructions: Sequence[str],
        processor: Processor,
        device: torch.device,
        proprio: Sequence[Proprio] = (),
    ) -> None:
        """Decodes nothing yet.

        Args:
            frames: [S * I], encoded images, one state's after another's.
            instructions: [S], what the policy was told.
            processor: the policy's.
            device: where inputs are wanted.
            proprio: [S], where the policy reads it.
        """
        self._cameras = len(processor.spec.cameras)
        if len(frames) != len(instructions) * self._cameras:
            raise ValueError(
                f"{len(frames)} frames of {len(instructions)} states, in each of which the policy "
                f"sees {self._cameras}"
            )
        self._encoded = frames
        self._prepared: dict[int, Frame] = {}
        self._processor = processor
        self._device = device
        known = {text: processor.prompt(text) for text in set(instructions)}
        self._prompts = [known[text] for text in instructions]
        self._proprio: NDArray[np.float64] | None = None
        if processor.spec.proprio_dim:
            read = [processor.proprioception(one.values, one.unnorm_key) for one in proprio]
            self._proprio = np.stack(read)
        self.prompt_lengths: Indices = np.array([len(prompt) for prompt in self._prompts])
        """[S], each prompt's tokens."""

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, states: Indices) -> ObservationBatch:
        """Inputs of these states."""
        places = np.add.outer(states * self._cameras, np.arange(self._cameras)).tolist()
        self._prepare({place for state in places for place in state})
        return self._processor.batch(
            np.stack([[self._prepared[place] for place in state] for state in places]),
            [self._prompts[int(state)] for state in states],
            self._device,
            None if self._proprio is None else self._proprio[states],
        )

    def forget(self) -> None:
        """Has every frame decoded anew when it is asked for."""
        self._prepared.clear()

    def _prepare(self, places: Set[int]) -> None:
        """Decodes those of these frames that haven't been."""
        missing = sorted(places - self._prepared.keys())
        # Decoding and resizing release the interpreter's lock for most of their time.
        with ThreadPoolExecutor() as threads:
            encoded = [self._encoded[place] for place in missing]
            try:
                frames = list(threads.map(self._processor.frame, encoded))
            except ImageError as error:
                raise TrajectoryError(f"a recorded frame is no image: {error}") from error
        self._prepared.update(zip(missing, frames, strict=True))
