"""Which task comes next, from how well each went lately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["uniform", "paper", "frontier"]


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
