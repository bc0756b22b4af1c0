"""Which task comes next, from how well each went lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.config import CurriculumConfig

Kind = Literal["uniform", "paper", "frontier"]

UNSEEN = 0.5
"""Success rate of a task that has had no episode yet."""


def task_probabilities(
    success: ArrayLike, tau: float, kind: Kind, floor: float = 0.0
) -> NDArray[np.float64]:
    """Probability of each task, from recent success rates.

    `uniform` ignores success. `paper` is VLA-RL's formula, exp((0.5 - s) / tau), which prefers the
    hardest tasks. `frontier` is what its prose says, exp(-|0.5 - s| / tau): tasks near 50 % come
    most.

    Args:
        success: [tasks], recent success rates; 0.5 for a task not seen yet.
        tau: temperature; large is uniform.
        kind: the formula.
        floor: least probability of every task, at most 1 / tasks, so that none starves.
    """
    rate = np.asarray(success, dtype=np.float64)
    score = {
        "uniform": np.zeros_like(rate),
        "paper": (0.5 - rate) / tau,
        "frontier": -np.abs(0.5 - rate) / tau,
    }[kind]
    weight = np.exp(score - score.max())
    if not 0.0 <= floor * rate.size <= 1.0:
        raise ValueError(f"floor {floor} is not between 0 and 1 / {rate.size} tasks")
    probabilities: NDArray[np.float64] = weight / weight.sum()
    return np.asarray(floor + (1.0 - floor * rate.size) * probabilities)


def draw_tasks(
    probabilities: NDArray[np.float64], count: int, generator: np.random.Generator
) -> Sequence[int]:
    """Positions of `count` tasks, as even as the probabilities allow.

    Systematic resampling: each task comes floor(count * p) or ceil(count * p) times, so equal
    probabilities give equal shares instead of a multinomial's scatter.
    """
    points = (generator.random() + np.arange(count)) / count
    tasks = np.searchsorted(np.cumsum(probabilities), points, side="right")
    drawn = np.minimum(tasks, len(probabilities) - 1)
    return [int(task) for task in generator.permutation(drawn)]


class Curriculum:
    """Draws tasks, and remembers how each went lately."""

    def __init__(self, tasks: Sequence[int], config: CurriculumConfig) -> None:
        """tasks: indices within the suite."""
        self._config = config
        self._recent: dict[int, deque[bool]] = {task: deque(maxlen=config.window) for task in tasks}

    def draw(self, count: int, generator: np.random.Generator) -> list[int]:
        """The tasks of `count` episodes."""
        chances = self.probabilities()
        tasks = list(chances)
        drawn = draw_tasks(np.array(list(chances.values())), count, generator)
        return [tasks[position] for position in drawn]

    def probabilities(self) -> dict[int, float]:
        """How probable each task is in the next draw."""
        rates = [self.success_rate(task) for task in self._recent]
        config = self._config
        floor = config.floor / len(rates)
        chances = task_probabilities(rates, tau=config.tau, kind=config.kind, floor=floor)
        return dict(zip(self._recent, chances.tolist(), strict=True))

    def success_rate(self, task: int) -> float:
        """Recent success rate; 0.5 for a task that hasn't been seen."""
        recent = self._recent[task]
        return sum(recent) / len(recent) if recent else UNSEEN

    def record(self, task: int, success: bool) -> None:
        """Takes an episode's outcome into account, unless its task is no longer trained on."""
        if task in self._recent:
            self._recent[task].append(success)

    def metrics(self) -> dict[str, float]:
        """Recent success and the probability that follows from it, by task."""
        return {f"task_success/task_{task}": self.success_rate(task) for task in self._recent} | {
            f"task_probability/task_{task}": chance for task, chance in self.probabilities().items()
        }

    def state(self) -> dict[str, list[bool]]:
        """What a checkpoint keeps."""
        return {str(task): list(recent) for task, recent in self._recent.items()}

    def restore(self, state: Mapping[str, Sequence[bool]]) -> None:
        """Takes a checkpoint's state over; tasks that are no longer trained on are left out."""
        for task, recent in self._recent.items():
            recent.clear()
            recent.extend(state.get(str(task), []))
