"""The curriculum over a run: who comes how often, and what it remembers."""

import json

import numpy as np
import pytest

from vlarl.config import CurriculumConfig
from vlarl_trainer.rollouts.curriculum import Curriculum

TASKS = (1, 4, 7)
HARD, MEDIUM, MASTERED = TASKS
TRUTH = {HARD: 0.05, MEDIUM: 0.5, MASTERED: 1.0}


def shares(kind: str, **settings: float) -> dict[int, float]:
    """How often each task came in 200 batches of 6, played by policies that don't learn."""
    curriculum = Curriculum(TASKS, CurriculumConfig(kind=kind, **settings))
    luck = np.random.default_rng(3)
    drawn = []
    for iteration in range(200):
        batch = curriculum.draw(6, np.random.default_rng([5, iteration]))
        for task in batch:
            curriculum.record(task, bool(luck.random() < TRUTH[task]))
        drawn += batch
    return {task: drawn.count(task) / len(drawn) for task in TASKS}


def test_the_papers_formula_prefers_the_hardest() -> None:
    got = shares("paper", tau=0.3, floor=0.0)
    assert got[HARD] > 0.6
    assert got[HARD] > got[MEDIUM] > got[MASTERED]


def test_the_frontier_prefers_tasks_near_one_half() -> None:
    got = shares("frontier", tau=0.3, floor=0.0)
    assert got[MEDIUM] > 0.55
    assert got[MEDIUM] > max(got[HARD], got[MASTERED])


def test_uniform_prefers_none() -> None:
    assert shares("uniform") == pytest.approx(dict.fromkeys(TASKS, 1 / 3), abs=0.01)


@pytest.mark.parametrize("kind", ["paper", "frontier"])
def test_no_task_starves(kind: str) -> None:
    assert shares(kind, tau=0.01, floor=0.0)[MASTERED] < 0.02
    assert shares(kind, tau=0.01, floor=0.3)[MASTERED] == pytest.approx(0.1, abs=0.01)


def test_unseen_tasks_count_as_one_half() -> None:
    curriculum = Curriculum(TASKS, CurriculumConfig(kind="frontier", tau=0.1, floor=0.0))
    for success in (True, True, True, True):
        curriculum.record(MASTERED, success)
    assert curriculum.success_rate(HARD) == 0.5
    chances = curriculum.probabilities()
    assert chances[HARD] == chances[MEDIUM] > 10 * chances[MASTERED]


def test_only_the_window_counts() -> None:
    curriculum = Curriculum(TASKS, CurriculumConfig(window=4))
    for success in (True,) * 10 + (False,) * 3:
        curriculum.record(HARD, success)
    assert curriculum.success_rate(HARD) == 0.25


def test_it_remembers_through_a_checkpoint() -> None:
    curriculum = Curriculum(TASKS, CurriculumConfig())
    for success in (True, True, False, True):
        curriculum.record(HARD, success)
    restored = Curriculum(TASKS, CurriculumConfig())
    restored.restore(json.loads(json.dumps(curriculum.state())))
    assert restored.metrics() == curriculum.metrics()
    drawn = [one.draw(9, np.random.default_rng(0)) for one in (curriculum, restored)]
    assert drawn[0] == drawn[1]


def test_an_episode_of_a_task_that_is_no_longer_trained_on_is_forgotten() -> None:
    """One that was out when the run went on with other tasks."""
    curriculum = Curriculum(TASKS, CurriculumConfig())
    before = curriculum.metrics()
    curriculum.record(max(TASKS) + 1, True)
    assert curriculum.metrics() == before


def test_metrics_name_every_task() -> None:
    curriculum = Curriculum(TASKS, CurriculumConfig(kind="paper", tau=1.0, floor=0.0))
    curriculum.record(MASTERED, True)
    metrics = curriculum.metrics()
    assert [metrics[f"task_success/task_{task}"] for task in TASKS] == [0.5, 0.5, 1.0]
    weights = np.exp([0.0, 0.0, -0.5])
    chances = [metrics[f"task_probability/task_{task}"] for task in TASKS]
    np.testing.assert_allclose(chances, weights / weights.sum())
