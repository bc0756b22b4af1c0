"""All samples of some tasks, as a model sees and says things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlarl.data.dataset import Frames, TaskSamples
from vlarl.data.frames import FrameStore
from vlarl.data.samples import Samples
from vlarl.images import Frame
from vlarl.learning.ranks import Indices
from vlarl.models.base import PolicyFamily
from vlarl.models.network import pad_prompts
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
        """Reads actions and poses; frames come later.

        Args:
            tasks: whose samples.
            policy: whose frame size and action tokens.
            statistics: of suites; where there are none, the checkpoint's own normalise actions.
        """
        samples = [task.samples for task in tasks]
        self.pose_names = tuple(dict.fromkeys(name for one in samples for name in one.pose_names))
        self._frames = [one.frames for one in samples]
        self._instructions = [one.instruction for one in samples]
        self._token_ids = [
            policy.action_tokenizer.tokens(one.actions, _stats(one, policy.spec, statistics))
            for one in samples
        ]
        self._poses = [_poses(one, self.pose_names) for one in samples]
        self._labels = [task.labels for task in tasks]
        self._image_size = policy.spec.image_size

    def gather(self, chosen: list[Indices], processor: Reading, cache_bytes: int) -> Samples:
        """The chosen samples of each task."""
        prompts = [processor.prompt(instruction) for instruction in self._instructions]
        encoded = _Encoded(self._frames, chosen)
        return Samples(
            FrameStore(encoded, processor.frame, self._image_size, cache_bytes),
            pad_prompts(prompts, processor.pad_id),
            tasks=np.repeat(np.arange(len(chosen)), [len(one) for one in chosen]),
            token_ids=_picked(self._token_ids, chosen),
            poses=_picked(self._poses, chosen),
            labels=_picked(self._labels, chosen),
        )


def _picked(arrays: list[NDArray[N]], chosen: list[Indices]) -> NDArray[N]:
    return np.concatenate([array[one] for array, one in zip(arrays, chosen, strict=True)])


def measured(tasks: Sequence[Task], most: int) -> list[Indices]:
    """Held-out samples of each task, evenly thinned to about so many of all tasks together."""
    total = sum(int(task.held_out.sum()) for task in tasks)
    stride = max(1, -(-total // most))
    return [np.flatnonzero(task.held_out)[::stride] for task in tasks]


def _stats(task: TaskSamples, spec: PolicySpec, statistics: dict[str, Statistics]) -> ActionStats:
    """Those that normalise a task's actions."""
    if statistics:
        return ActionStats.from_json(statistics[task.suite]["action"])
    return spec.statistics(task.suite)


def _poses(task: TaskSamples, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Poses [N, len(names)], NaN where the task has none of that name."""
    poses = np.full((len(task.poses), len(names)), np.nan, dtype=np.float32)
    poses[:, [names.index(name) for name in task.pose_names]] = task.poses
    return poses
