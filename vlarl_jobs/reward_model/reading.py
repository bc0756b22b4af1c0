"""Demonstrations and rollouts as labelled samples, learned from or held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlarl.config import RewardModelConfig
from vlarl.config.libero import CONTROL_RATE
from vlarl.data.dataset import DatasetError, TaskSamples, read_dataset
from vlarl.data.pool import Pool, Task, measured
from vlarl.data.samples import Samples
from vlarl.errors import ConfigError
from vlarl.learning.ranks import Indices
from vlarl.models.registry import policy_family
from vlarl_jobs.reward_model.backbones import reading
from vlarl_jobs.reward_model.labels import label_task

ROLLOUT = -1
"""The segment of samples from a rollout, whose milestones nobody looks for."""


@dataclass(frozen=True)
class Labelled:
    """Everything that a reward model learns from and is measured on."""

    train: Samples
    held_out: Samples
    """Of other placements than `train`, thinned."""
    all_held_out: Samples
    """The same, all of them."""
    origin: NDArray[np.int64]
    """[all held out], number of each sample's task, in `tasks`."""
    segment: NDArray[np.int64]
    """[all held out], its segment between milestones, or `ROLLOUT`."""
    suites: tuple[str, ...]
    """Each task's, as samples number tasks."""
    tasks: tuple[str, ...]
    """SUITE INDEX."""
    description: str
    """How much of what, for people."""


@dataclass(frozen=True)
class _Source:
    task: Task
    segment: NDArray[np.int64]


def read_labelled(config: RewardModelConfig) -> Labelled:
    """Reads all datasets and labels them.

    Raises:
        DatasetError: a dataset can't be read or labelled, holds official initial states, or there
            is nothing of one kind.
        ConfigError: the checkpoint has no statistics for a suite.
    """
    policy = policy_family(config.scored_policy)
    if policy.spec.chunk > 1:
        raise ConfigError(
            f"{config.scored_policy} answers {policy.spec.chunk} actions at once, and a process "
            "reward model scores one: train it for an OpenVLA"
        )
    data, crop = config.data, config.augmentation.random_crop
    sources = [source for folder in data.datasets for source in _read(folder, config)]
    tasks = [source.task for source in sources]
    pool = Pool(tasks, policy, {})
    cropped, plain = (reading(config, center_crop=one) for one in (crop, False))
    away = [np.flatnonzero(task.held_out) for task in tasks]
    here = [np.flatnonzero(~task.held_out) for task in tasks]
    cache = int(data.cache_gib * 2**30)
    held_out = pool.gather(measured(tasks, data.held_out_samples), cropped, cache)
    train = pool.gather(here, plain, cache - held_out.frames.kept_bytes)
    for kind, label in (("positive", 1.0), ("negative", 0.0)):
        if not (train.labels == label).any():
            raise DatasetError(f"the datasets hold no {kind} sample to learn from")
    names = tuple(dict.fromkeys(_name(task.samples) for task in tasks))
    return Labelled(
        train=train,
        held_out=held_out,
        all_held_out=pool.gather(away, cropped, 0),
        origin=_spread([names.index(_name(task.samples)) for task in tasks], away),
        segment=np.concatenate(
            [one.segment[chosen] for one, chosen in zip(sources, away, strict=True)]
        ),
        suites=tuple(task.samples.suite for task in tasks),
        tasks=names,
        description=_describe(tasks),
    )


def _read(folder: Path, config: RewardModelConfig) -> list[_Source]:
    dataset = read_dataset(folder)
    return [
        _labelled(task, folder, dataset.capture.action_repeat, config) for task in dataset.tasks
    ]


def _labelled(task: TaskSamples, folder: Path, repeat: int, config: RewardModelConfig) -> _Source:
    """Those of a task's samples that have a label."""
    if task.placements is not None and (task.placements < 0).any():
        raise DatasetError(
            f"{folder}: {_name(task)} holds episodes from official initial states, which are kept "
            "for judging: record rollouts in training instead (trainer.record_rollouts)"
        )
    labels = np.full(len(task.frames), np.nan, np.float32)
    segment = np.full(len(task.frames), ROLLOUT, np.int64)
    if task.succeeded is None:
        for samples, found in label_task(task, config.labels):
            labels[samples], segment[samples] = found.positive, found.segment
    else:
        labels[_ends(task, task.succeeded, config.labels.lead_seconds, repeat)] = 1
        labels[_ends(task, ~task.succeeded, config.data.tail_seconds, repeat)] = 0
    known = np.isfinite(labels)
    kept = task.only(known)
    held_out = _held_out(kept, config.data.held_out, config.seed)
    return _Source(Task(folder, repeat, kept, held_out, labels[known]), segment[known])


def _held_out(task: TaskSamples, share: float, seed: int) -> NDArray[np.bool_]:
    """Which samples [N] are of a held-out placement: a function of the placement alone, so that it
    is held out wherever it comes.
    """
    placements = task.episodes if task.placements is None else task.placements

    def place(placement: int) -> float:
        key = f"{seed} {task.suite} {task.index} {placement}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64

    away = [number for number in np.unique(placements).tolist() if place(number) < share]
    return np.isin(placements, away)


def _ends(task: TaskSamples, chosen: NDArray[np.bool_], seconds: float, repeat: int) -> Indices:
    """The last samples of each episode whose samples are chosen [N]."""
    most = max(1, round(seconds * CONTROL_RATE / repeat))
    numbers = np.unique(task.episodes[chosen])
    ends = [np.flatnonzero(task.episodes == number)[-most:] for number in numbers]
    return np.concatenate([*ends, np.zeros(0, np.int64)])


def _name(task: TaskSamples) -> str:
    return f"{task.suite} {task.index}"


def _spread(values: Sequence[int], chosen: Sequence[Indices]) -> NDArray[np.int64]:
    return np.repeat(np.array(values, np.int64), [len(one) for one in chosen])


def _describe(tasks: Sequence[Task]) -> str:
    labels = np.concatenate([task.labels for task in tasks])
    away = np.concatenate([task.held_out for task in tasks])
    suites = ", ".join(dict.fromkeys(task.samples.suite for task in tasks))
    return (
        f"{suites}: {len(labels):,} labelled samples, {labels.mean():.0%} of them positive, "
        f"{away.sum():,} held out (number of tasks: {len({_name(t.samples) for t in tasks})})"
    )
