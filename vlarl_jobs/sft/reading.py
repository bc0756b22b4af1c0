"""Datasets of demonstrations as the model sees and says things, learned from or held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlarl.config import DataConfig
from vlarl.data.dataset import DatasetError, Frames, TaskSamples, read_dataset
from vlarl.data.frames import FrameStore
from vlarl.data.samples import Samples
from vlarl.images import Frame
from vlarl.learning.ranks import Indices
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.network import pad_prompts
from vlarl.models.openvla.processor import Preparation
from vlarl.models.openvla.tokens import ActionStats, ActionTokenizer
from vlarl.models.statistics import Statistics, dataset_statistics

N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True)
class Demonstrations:
    """Everything that a run learns from and is measured on."""

    train: Samples
    held_out: Samples
    """Of whole episodes that are not in `train`."""
    statistics: dict[str, Statistics]
    """The suites' entries of ``norm_stats``; empty where the checkpoint's own were used."""
    pose_names: tuple[str, ...]
    """[P]."""
    description: str
    """How much of what, for people."""


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


def read_demonstrations(
    data: DataConfig, checkpoint: Path, *, center_crop: bool, seed: int
) -> Demonstrations:
    """Reads all datasets.

    Args:
        data: which, and how much is held out.
        checkpoint: gives frame size, tokenizer, action ids and, if asked for, statistics.
        center_crop: whether held-out frames are cropped, as they will be where the policy acts.
        seed: of the choice of held-out episodes.

    Raises:
        DatasetError: a dataset can't be read, or datasets don't go together.
        ConfigError: the checkpoint has no statistics for a suite, though it should.
    """
    config = OpenVLAConfig.from_directory(checkpoint)
    tasks = _read_tasks(data, seed)
    statistics: dict[str, Statistics] = {}
    if data.statistics == "dataset":
        statistics = _suite_statistics(tasks, data.range_floor)
    pool = Pool(tasks, config, statistics)
    cropped = Preparation(checkpoint, config, center_crop=center_crop)
    cache = int(data.cache_gib * 2**30)
    held_out = pool.gather(measured(tasks, data.held_out_samples), cropped, cache)
    learned = [np.flatnonzero(~task.held_out) for task in tasks]
    plain = Preparation(checkpoint, config, center_crop=False)
    train = pool.gather(learned, plain, cache - held_out.frames.kept_bytes)
    if not len(train):
        raise DatasetError("the datasets hold no sample to learn from: add demonstrations")
    return Demonstrations(train, held_out, statistics, pool.pose_names, _describe(tasks))


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
        self, tasks: Sequence[Task], config: OpenVLAConfig, statistics: dict[str, Statistics]
    ) -> None:
        """statistics: of suites; where there are none, the checkpoint's own normalise actions."""
        samples = [task.samples for task in tasks]
        self.pose_names = tuple(dict.fromkeys(name for one in samples for name in one.pose_names))
        self._frames = [one.frames for one in samples]
        self._instructions = [one.instruction for one in samples]
        self._token_ids = [token_ids(one, config, statistics) for one in samples]
        self._poses = [_poses(one, self.pose_names) for one in samples]
        self._labels = [task.labels for task in tasks]
        self._config = config

    def gather(self, chosen: list[Indices], preparation: Reading, cache_bytes: int) -> Samples:
        """The chosen samples of each task."""
        prompts = [preparation.prompt(instruction) for instruction in self._instructions]
        size = self._config.image_size
        return Samples(
            FrameStore(_Encoded(self._frames, chosen), preparation.frame, size, cache_bytes),
            pad_prompts(prompts, preparation.pad_id),
            tasks=np.repeat(np.arange(len(chosen)), [len(one) for one in chosen]),
            token_ids=_picked(self._token_ids, chosen),
            poses=_picked(self._poses, chosen),
            labels=_picked(self._labels, chosen),
        )


def _picked(arrays: list[NDArray[N]], chosen: list[Indices]) -> NDArray[N]:
    return np.concatenate([array[one] for array, one in zip(arrays, chosen, strict=True)])


def _read_tasks(data: DataConfig, seed: int) -> list[Task]:
    tasks: list[Task] = []
    for folder in data.datasets:
        dataset = read_dataset(folder)
        for recorded in dataset.tasks:
            samples = recorded
            if recorded.succeeded is not None:
                samples = recorded.only(recorded.succeeded)  # nobody imitates a failure
            if not len(samples.frames):
                continue
            held_out = _held_out(samples, folder.name, data.held_out, seed)
            labels = np.full(len(samples.frames), np.nan, np.float32)
            tasks.append(Task(folder, dataset.capture.action_repeat, samples, held_out, labels))
    if not tasks:
        raise DatasetError(
            "the datasets hold no sample to learn from: add demonstrations that reach their goals"
        )
    first: dict[str, Task] = {}
    for task in tasks:
        other = first.setdefault(task.samples.suite, task)
        if other.action_repeat != task.action_repeat:
            raise DatasetError(
                f"{other.folder} holds each action for {other.action_repeat} control steps, "
                f"{task.folder} for {task.action_repeat}: actions of {task.samples.suite} must "
                "mean the same"
            )
    return tasks


def _held_out(task: TaskSamples, folder: str, share: float, seed: int) -> NDArray[np.bool_]:
    """Which samples [N] belong to held-out episodes: those whose hashes come first, at least one
    episode where there are two and anything is to be held out.
    """
    episodes = np.unique(task.episodes)

    def rank(episode: int) -> bytes:
        key = f"{seed} {folder} {task.suite} {task.index} {episode}"
        return hashlib.sha256(key.encode()).digest()

    count = round(share * len(episodes))
    if share and len(episodes) > 1:
        count = max(1, count)
    return np.isin(task.episodes, sorted(episodes, key=rank)[:count])


def measured(tasks: Sequence[Task], most: int) -> list[Indices]:
    """Held-out samples of each task, evenly thinned to about so many of all tasks together."""
    total = sum(int(task.held_out.sum()) for task in tasks)
    stride = max(1, -(-total // most))
    return [np.flatnonzero(task.held_out)[::stride] for task in tasks]


def _suite_statistics(tasks: list[Task], range_floor: float) -> dict[str, Statistics]:
    suites: dict[str, list[TaskSamples]] = {}
    for task in tasks:
        suites.setdefault(task.samples.suite, []).append(task.samples)
    return {
        suite: dataset_statistics(
            np.concatenate([one.actions for one in members]),
            sum(len(np.unique(one.episodes)) for one in members),
            range_floor,
        )
        for suite, members in suites.items()
    }


def token_ids(
    task: TaskSamples, config: OpenVLAConfig, statistics: dict[str, Statistics]
) -> NDArray[np.int64]:
    """The expert's actions as ids [N, 7]."""
    if statistics:
        stats = ActionStats.from_json(statistics[task.suite]["action"])
    else:
        stats = config.statistics(task.suite)
    return ActionTokenizer(config.action_vocab_size).encode(stats.normalize(task.actions))


def _poses(task: TaskSamples, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Poses [N, len(names)], NaN where the task has none of that name."""
    poses = np.full((len(task.poses), len(names)), np.nan, dtype=np.float32)
    poses[:, [names.index(name) for name in task.pose_names]] = task.poses
    return poses


def _describe(tasks: list[Task]) -> str:
    suites = ", ".join(dict.fromkeys(task.samples.suite for task in tasks))
    samples = sum(len(task.held_out) for task in tasks)
    episodes = sum(len(np.unique(task.samples.episodes)) for task in tasks)
    away = sum(len(np.unique(task.samples.episodes[task.held_out])) for task in tasks)
    return (
        f"{suites}: {samples:,} samples of {episodes:,} episodes, {away:,} episodes held out "
        f"(number of tasks: {len(tasks)})"
    )
