"""All samples of some tasks, as a model sees and says things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlarl.data.chunks import chunk_targets
from vlarl.data.dataset import Frames, TaskSamples, require_cameras, require_proprioception
from vlarl.data.frames import FrameStore
from vlarl.data.samples import Samples
from vlarl.images import Frame
from vlarl.learning.ranks import Indices
from vlarl.models.base import PolicyFamily
from vlarl.models.network import pad_prompts
from vlarl.models.openvla.processor import normalized_proprio
from vlarl.models.spec import PolicySpec
from vlarl.models.statistics import ActionStats, Statistics

N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True)
class Task:
    """A dataset's samples of one task."""

    folder: Path
    action_repeat: int
    samples: TaskSamples
    held_out: NDArray[np.bool_]
    """[N], whether a sample is measured on and never learned from."""
    labels: NDArray[np.float32]
    """[N], NaN where there are none."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras of the dataset's frames, the main one first."""


class Reading(Protocol):
    """How a model reads frames and instructions."""

    pad_id: int
    """Fills prompts up on the right."""

    def frame(self, encoded: bytes) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Raises:
            ImageError: the bytes are no image.
        """

    def prompt(self, instruction: str) -> list[int]:
        """Prompt ids."""


class _Encoded(Sequence[bytes]):
    """Some frames of several tasks, in one row."""

    def __init__(self, frames: list[Frames], chosen: list[Indices]) -> None:
        self._frames = frames
        self._task = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
        self._place: Indices = np.concatenate(chosen)

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        return self._frames[int(self._task[index])][int(self._place[index])]


class Pool:
    """All samples of all tasks, of which some are gathered."""

    def __init__(
        self, tasks: Sequence[Task], policy: PolicyFamily, statistics: dict[str, Statistics]
    ) -> None:
        """Reads actions, proprioception and poses; frames come later.

        Args:
            tasks: whose samples.
            policy: whose frame size, action tokens, cameras and proprioception.
            statistics: of suites; where there are none, the checkpoint's own normalise actions.

        Raises:
            DatasetError: a dataset lacks something that the policy reads.
            ConfigError: the checkpoint has no statistics for a suite.
        """
        samples, spec = [task.samples for task in tasks], policy.spec
        self.pose_names = tuple(dict.fromkeys(name for one in samples for name in one.pose_names))
        self._frames = [_frames_of(task, spec.cameras) for task in tasks]
        self._instructions = [one.instruction for one in samples]
        self._targets = [chunk_targets(one.episodes, spec.chunk) for one in samples]
        self._token_ids = [
            policy.action_tokenizer.tokens(one.actions, _stats(one, spec, statistics))
            for one in samples
        ]
        reading = tasks if spec.proprio_dim else ()
        for task in reading:
            require_proprioception(task.folder, task.samples, spec.proprio_dim)
        self._proprio = [_proprioception(task.samples, spec, statistics) for task in reading]
        self._poses = [_poses(one, self.pose_names) for one in samples]
        self._labels = [task.labels for task in tasks]
        self._spec = spec

    def gather(self, chosen: list[Indices], processor: Reading, cache_bytes: int) -> Samples:
        """The chosen samples of each task."""
        prompts = [processor.prompt(instruction) for instruction in self._instructions]
        cameras = len(self._spec.cameras)
        main, *further = (
            FrameStore(
                _Encoded([one[camera] for one in self._frames], chosen),
                processor.frame,
                self._spec.image_size,
                cache_bytes // cameras,
            )
            for camera in range(cameras)
        )
        return Samples(
            main,
            pad_prompts(prompts, processor.pad_id),
            tasks=np.repeat(np.arange(len(chosen)), [len(one) for one in chosen]),
            token_ids=self._answers(chosen),
            poses=_picked(self._poses, chosen),
            labels=_picked(self._labels, chosen),
            counted=self._counted(chosen),
            proprio=_picked(self._proprio, chosen) if self._proprio else None,
            further_frames=further,
        )

    def _answers(self, chosen: list[Indices]) -> NDArray[np.int64]:
        """The policy's tokens [M, K] of chosen samples, step by step."""
        answers = [
            ids[targets.samples[one]].reshape(len(one), self._spec.tokens)
            for ids, targets, one in zip(self._token_ids, self._targets, chosen, strict=True)
        ]
        return np.concatenate(answers)

    def _counted(self, chosen: list[Indices]) -> NDArray[np.bool_]:
        """Which of these tokens [M, K] are of actions that their episode has."""
        exist = _picked([targets.exist for targets in self._targets], chosen)
        return np.repeat(exist, self._spec.action_dim, axis=1)


def _picked(arrays: list[NDArray[N]], chosen: list[Indices]) -> NDArray[N]:
    return np.concatenate([array[one] for array, one in zip(arrays, chosen, strict=True)])


def measured(
    tasks: Sequence[Task], most: int, usable: Sequence[NDArray[np.bool_]] = ()
) -> list[Indices]:
    """Held-out samples of each task, evenly thinned to about so many of all tasks together.

    usable: which samples [N] of each task can be measured on; (): all.
    """
    held_out = [task.held_out for task in tasks]
    if usable:
        held_out = [away & one for away, one in zip(held_out, usable, strict=True)]
    total = sum(int(away.sum()) for away in held_out)
    stride = max(1, -(-total // most))
    return [np.flatnonzero(away)[::stride] for away in held_out]


def _stats(task: TaskSamples, spec: PolicySpec, statistics: dict[str, Statistics]) -> ActionStats:
    """Those that normalise a task's actions."""
    if statistics:
        return ActionStats.from_json(statistics[task.suite]["action"])
    return spec.statistics(task.suite)


def _frames_of(task: Task, cameras: Sequence[str]) -> tuple[Frames, ...]:
    """What each of a policy's cameras saw; a single one takes the main one's place.

    Raises:
        DatasetError: the dataset lacks one.
    """
    if len(cameras) == 1:
        return (task.samples.frames,)
    require_cameras(task.folder, task.cameras, cameras)
    return tuple(task.samples.all_frames[task.cameras.index(camera)] for camera in cameras)


def _proprioception(
    samples: TaskSamples, spec: PolicySpec, statistics: dict[str, Statistics]
) -> NDArray[np.float32]:
    """Normalised proprioception [N, P] of samples that have it."""
    if statistics:
        stats = ActionStats.from_json(statistics[samples.suite]["proprio"])
    else:
        stats = spec.proprio_stats[spec.unnorm_key(samples.suite)]
    return normalized_proprio(np.asarray(samples.proprio, np.float64), stats).astype(np.float32)


def _poses(task: TaskSamples, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Poses [N, len(names)], NaN where the task has none of that name."""
    poses = np.full((len(task.poses), len(names)), np.nan, dtype=np.float32)
    poses[:, [names.index(name) for name in task.pose_names]] = task.poses
    return poses
