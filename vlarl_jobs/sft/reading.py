"""Datasets of demonstrations as the model sees and says things, learned from or held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlarl.config import DataConfig
from vlarl.data.chunks import chunk_targets
from vlarl.data.dataset import DatasetError, TaskSamples, read_dataset
from vlarl.data.pool import Pool, Task, measured
from vlarl.data.samples import Samples
from vlarl.learning.ranks import Indices
from vlarl.models.registry import policy_family
from vlarl.models.statistics import Statistics, dataset_statistics


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
    policy = policy_family(checkpoint)
    tasks = _read_tasks(data, seed)
    statistics: dict[str, Statistics] = {}
    if data.statistics == "dataset":
        statistics = _suite_statistics(tasks, data.range_floor, policy.spec.proprio_dim)
    pool = Pool(tasks, policy, statistics)
    chunk = 1 if data.partial_chunks else policy.spec.chunk
    usable = _usable(tasks, chunk)
    cropped = policy.processor(center_crop)
    cache = int(data.cache_gib * 2**30)
    held_out = pool.gather(measured(tasks, data.held_out_samples, usable), cropped, cache)
    learned = _learned(tasks, usable, chunk)
    plain = policy.processor(center_crop=False)
    train = pool.gather(learned, plain, cache - held_out.kept_bytes)
    return Demonstrations(train, held_out, statistics, pool.pose_names, _describe(tasks))


def check_demonstrations(data: DataConfig, chunk: int, *, seed: int) -> list[TaskSamples]:
    """Makes sure that there is something to learn from. No frame is read.

    Args:
        data: the datasets, and how much is held out.
        chunk: actions of one of the policy's answers.
        seed: of the choice of held-out episodes.

    Returns:
        What is learned from and measured on, with empty frames.

    Raises:
        DatasetError: a dataset can't be read, datasets don't go together, or there is nothing.
    """
    tasks = _read_tasks(data, seed, with_frames=False)
    counted = 1 if data.partial_chunks else chunk
    _learned(tasks, _usable(tasks, counted), counted)
    return [task.samples for task in tasks]


def require_poses(names: Sequence[str]) -> None:
    """Refuses datasets from which vision can't be pretrained.

    names: what the poses of all tasks are.

    Raises:
        DatasetError: there is none.
    """
    if not names:
        raise DatasetError("[pretrain] needs poses, and no dataset has any: leave it out")


def _usable(tasks: list[Task], chunk: int) -> list[NDArray[np.bool_]]:
    """Of each task, which samples [N] have a whole chunk."""
    return [chunk_targets(task.samples.episodes, chunk).whole for task in tasks]


def _learned(tasks: list[Task], usable: list[NDArray[np.bool_]], chunk: int) -> list[Indices]:
    """Of each task, the usable samples that are learned from.

    Raises:
        DatasetError: there is none.
    """
    learned = [
        np.flatnonzero(~task.held_out & one) for task, one in zip(tasks, usable, strict=True)
    ]
    if not any(map(len, learned)):
        longer = (
            f" with episodes of at least {chunk} actions, the policy's chunk, or set "
            "data.partial_chunks to true"
        ) * (chunk > 1)
        raise DatasetError(f"the datasets hold no sample to learn from: add demonstrations{longer}")
    return learned


def _read_tasks(data: DataConfig, seed: int, *, with_frames: bool = True) -> list[Task]:
    tasks: list[Task] = []
    for folder in data.datasets:
        dataset = read_dataset(folder, with_frames=with_frames)
        for recorded in dataset.tasks:
            samples = recorded
            if recorded.succeeded is not None:
                samples = recorded.only(recorded.succeeded)  # nobody imitates a failure
            if not len(samples.frames):
                continue
            held_out = _held_out(samples, folder.name, data.held_out, seed)
            labels = np.full(len(samples.frames), np.nan, np.float32)
            capture = dataset.capture
            tasks.append(
                Task(folder, capture.action_repeat, samples, held_out, labels, capture.cameras)
            )
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


def _suite_statistics(
    tasks: list[Task], range_floor: float, proprio_dim: int
) -> dict[str, Statistics]:
    """Of all samples, those included that begin no whole chunk, as the originals compute them."""
    suites: dict[str, list[TaskSamples]] = {}
    for task in tasks:
        suites.setdefault(task.samples.suite, []).append(task.samples)
    return {
        suite: dataset_statistics(
            np.concatenate([one.actions for one in members]),
            sum(len(np.unique(one.episodes)) for one in members),
            range_floor,
            _proprioception(members, proprio_dim),
        )
        for suite, members in suites.items()
    }


def _proprioception(members: list[TaskSamples], width: int) -> NDArray[np.float32] | None:
    """Of all samples of a suite, where all have it as the policy reads it; which is said later."""
    known = [one.proprio for one in members if one.proprio is not None]
    fits = len(known) == len(members) and {one.shape[1] for one in known} == {width}
    return np.concatenate(known) if fits else None


def _describe(tasks: list[Task]) -> str:
    suites = ", ".join(dict.fromkeys(task.samples.suite for task in tasks))
    samples = sum(len(task.held_out) for task in tasks)
    episodes = sum(len(np.unique(task.samples.episodes)) for task in tasks)
    away = sum(len(np.unique(task.samples.episodes[task.held_out])) for task in tasks)
    return (
        f"{suites}: {samples:,} samples of {episodes:,} episodes, {away:,} episodes held out "
        f"(number of tasks: {len(tasks)})"
    )
