"""What a judge says of whole episodes: does its mean tell a success from a failure?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.trainer.observations import Preparation
from services.trainer.rprm.card import probabilities
from services.trainer.rprm.measures import Floats, auc
from services.trainer.sft.reading import Pool, Task
from vlarl.demonstrations import Dataset, DatasetError, TaskSamples
from vlarl.openvla.judge import Judge


@dataclass(frozen=True)
class JudgedTask:
    """A task's episodes, of all parts that a dataset has of it."""

    name: str
    """SUITE INDEX."""
    scores: Floats
    """[E], mean probability of an episode's steps."""
    succeeded: NDArray[np.bool_]
    """[E]."""

    @property
    def auc(self) -> float:
        """How often a success has the higher mean; NaN where all ended alike."""
        return auc(self.scores, self.succeeded)


def judge_rollouts(
    judge: Judge, checkpoint: Path, datasets: Iterable[tuple[Path, Dataset]]
) -> list[JudgedTask]:
    """Judges every episode of recorded rollouts.

    Args:
        judge: the model.
        checkpoint: what it was loaded from.
        datasets: folders and their content.

    Raises:
        DatasetError: a dataset holds demonstrations, whose failures nobody kept.
    """
    found: dict[str, list[tuple[Floats, NDArray[np.bool_]]]] = {}
    for folder, dataset in datasets:
        for task in dataset.tasks:
            if task.succeeded is None:
                raise DatasetError(
                    f"{folder} holds demonstrations, not rollouts: `vlarl eval --record` and "
                    "trainer.record_rollouts keep those"
                )
            steps = _scores(judge, checkpoint, folder, dataset.capture.action_repeat, task)
            name = f"{task.suite} {task.index}"
            found.setdefault(name, []).append(_episodes(task, steps))
    return [
        JudgedTask(name, *(np.concatenate(parts) for parts in zip(*episodes, strict=True)))
        for name, episodes in found.items()
    ]


def _scores(judge: Judge, checkpoint: Path, folder: Path, repeat: int, task: TaskSamples) -> Floats:
    count = len(task.frames)
    labels = np.full(count, np.nan, np.float32)
    whole = Task(folder, repeat, task, np.zeros(count, np.bool_), labels)
    preparation = Preparation(checkpoint, judge.config, judge.config.center_crop)
    samples = Pool([whole], judge.config, {}).gather([np.arange(count)], preparation, 0)
    return probabilities(judge, samples)


def _episodes(task: TaskSamples, steps: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Means of the steps, and how each episode ended."""
    assert task.succeeded is not None  # noqa: S101 - asked before
    numbers, first, counts = np.unique(task.episodes, return_index=True, return_counts=True)
    places = np.searchsorted(numbers, task.episodes)
    return np.bincount(places, steps) / counts, task.succeeded[first]
