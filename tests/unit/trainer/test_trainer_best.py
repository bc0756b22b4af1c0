"""Which checkpoint is the best, when a run ends and when it goes back, by its evaluations."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.learning.checkpoints import ResumeError  # noqa: E402
from vlarl_trainer.record.best import (  # noqa: E402
    Row,
    Scored,
    best_checkpoint,
    best_of,
    comparable,
    fallen,
    kept_best,
    reached,
    rollback_to,
)
from vlarl_trainer.record.evaluation import EpisodeResult, EvaluationLog, count  # noqa: E402
from vlarl_trainer.record.progress import Progress, run_checkpoints  # noqa: E402

pytestmark = pytest.mark.torch


def at(iteration: int, **changes: object) -> Progress:
    """A run that makes a version in each iteration."""
    begun = Progress("run", "abc", iteration=iteration, version=iteration + 1)
    return replace(begun, **changes)


def evaluated(run_dir: Path, successes: dict[int, int], episodes: int = 20) -> list[Row]:
    """evaluations.jsonl: by iteration, how many of the episodes of one task succeeded."""
    log = EvaluationLog(run_dir)
    for iteration, solved in successes.items():
        results = [EpisodeResult(4, n, "", n < solved, 5, 1.0, 1, "") for n in range(episodes)]
        log.write(count(results, at(iteration), []), seconds=1.0)
    return EvaluationLog(run_dir).rows


def test_the_best_has_the_most_successes_and_of_equal_ones_is_the_latest(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, {0: 2, 10: 17, 20: 17, 30: 9})
    assert best_of(comparable(rows)) == Scored(20, 21, 17, 20)
    assert best_of(comparable(rows, iteration=19)) == Scored(10, 11, 17, 20)
    assert best_of(comparable(rows, iteration=9)) == Scored(0, 1, 2, 20)
    assert best_of([]) is None
    assert str(Scored(20, 21, 18, 20)) == "90.0% (69.9% to 97.2%) after 20 iterations"


def test_evaluations_of_other_episodes_are_not_compared(tmp_path: Path) -> None:
    """Of five, all may succeed by luck; and another task may be an easier one."""
    evaluated(tmp_path, {10: 5}, episodes=5)
    rows = evaluated(tmp_path, {20: 12, 30: 11})
    assert [one.iteration for one in comparable(rows)] == [20, 30]
    assert [one.iteration for one in comparable(rows, iteration=10)] == [10]


def test_a_run_goes_back_only_to_what_is_there_and_was_evaluated(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, {10: 19, 20: 18, 30: 16, 40: 3})
    there = {20, 30, 40}
    best = kept_best(rows, at(40), there.__contains__)
    assert best == Scored(20, 21, 18, 20)
    # Under this number lies another policy since the run went back there.
    back = at(40).rolled_back(rollback_to(best, at(20), 0.5))
    assert kept_best(rows, back, there.__contains__) == Scored(30, 31, 16, 20)
    assert kept_best(rows, at(40), lambda _: False) is None


def test_the_policy_as_it_is_may_be_good_enough(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, {10: 18, 20: 17})
    assert reached(rows, at(10), 0.9) == Scored(10, 11, 18, 20)
    assert reached(rows, at(10), 0.91) is None
    assert reached(rows, at(20), 0.9) is None, "it was once, and isn't any more"
    assert reached(rows, at(15), 0.1) is None, "it wasn't evaluated"
    assert reached(rows, at(10), None) is None


def test_a_fall_is_many_evaluations_in_a_row_below_both_intervals(tmp_path: Path) -> None:
    """Wilson, z = 1.96, 20 episodes: 18 successes are 0.699 to 0.972, 9 at most 0.658, 10 at most
    0.701.
    """
    best = Scored(10, 11, 18, 20)
    assert best.interval == pytest.approx((0.699, 0.972), abs=5e-4)
    rows = evaluated(tmp_path, {10: 18, 20: 9, 30: 0, 40: 10, 50: 9, 60: 3, 70: 9})
    assert fallen(rows, at(20), best, 1)
    assert not fallen(rows, at(20), best, 2), "the best itself lies not below"
    assert fallen(rows, at(30), best, 2)
    assert not fallen(rows, at(40), best, 1), "the intervals overlap"
    assert not fallen(rows, at(60), best, 3), "not in a row"
    assert fallen(rows, at(70), best, 3)
    assert not fallen(rows, at(75), best, 3), "the policy as it is wasn't evaluated"


def test_a_return_begins_the_count_anew(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, {10: 18, 20: 0, 30: 0, 40: 0, 50: 0})
    best = Scored(10, 11, 18, 20)
    back = at(30).rolled_back(rollback_to(best, at(30), 0.5))
    assert not fallen(rows, back, best, 2), "it has gone back already"
    going_on = {"rollbacks": back.rollbacks}
    assert not fallen(rows, at(40, **going_on), best, 2)
    assert fallen(rows, at(50, **going_on), best, 2)


def test_a_return_is_a_new_version_of_the_policy_at_a_lower_rate() -> None:
    stood = at(30, env_steps=900, success={"4": [True]}, metrics={"entropy": 1.0})
    assert (stood.rate_scale, stood.first_version) == (1.0, 0)
    rollback = rollback_to(Scored(10, 11, 18, 20), stood, 0.25)
    back = stood.rolled_back(rollback)
    assert asdict(rollback) == {
        "iteration": 30,
        "from_version": 31,
        "to_iteration": 10,
        "to_version": 11,
        "version": 32,
        "rate_scale": 0.25,
    }
    assert replace(back, version=31, rollbacks=[]) == stood, "all else goes on"
    assert (back.version, back.rate_scale, back.first_version) == (32, 0.25, 32)
    again = back.rolled_back(rollback_to(Scored(10, 11, 18, 20), back, 0.5))
    assert (again.version, again.rate_scale, len(again.rollbacks)) == (33, 0.125, 2)


def test_the_best_checkpoint_is_found_or_its_absence_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=f"run {tmp_path} has no evaluation yet.*--best out"):
        best_checkpoint(tmp_path)
    checkpoints, tensors = run_checkpoints(tmp_path), {"a": torch.ones(1)}
    for iteration in (10, 20, 30):
        checkpoints.save(iteration, at(iteration), tensors, keep=3)
    evaluated(tmp_path, {10: 3, 20: 18, 30: 9})
    assert best_checkpoint(tmp_path) == checkpoints.path(20)
    gone = r"the best policy .*, 90\.0% \(69\.9% to 97\.2%\) after 20 iterations, is not there any"
    # A run that went back there.
    checkpoints.save(20, at(20, version=22), tensors, keep=3)
    with pytest.raises(ResumeError, match=gone):
        best_checkpoint(tmp_path)
    checkpoints.save(40, at(40), tensors, keep=1)
    with pytest.raises(ResumeError, match=gone):
        best_checkpoint(tmp_path)
