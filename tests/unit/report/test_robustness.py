"""Success in perturbed scenes: evaluated one after the other, counted, compared, reported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.report.run_folders import make_run, result
from vlarl.config import ConfigError
from vlarl.intervals import difference_interval, wilson_interval
from vlarl_jobs.evaluation.folder import EvaluationFolder
from vlarl_jobs.evaluation.robustness import evaluate_conditions
from vlarl_jobs.report.content import sections_of
from vlarl_jobs.report.groups import group_runs
from vlarl_jobs.report.report import write_report
from vlarl_jobs.report.robust_evaluations import (
    INDEX,
    Condition,
    RobustnessIndex,
    read_robustness,
)
from vlarl_jobs.report.run_folder import read_run
from vlarl_jobs.report.sections import Rate
from vlarl_trainer.record.evaluation import count
from vlarl_trainer.record.progress import Progress

pytestmark = pytest.mark.torch
EPISODES = 10
SUCCESSES = {
    "start-none": (4, 6),
    "start-position": (2, 3),
    "trained-none": (8, 10),
    "trained-position": (7, 1),
}
"""Of ten episodes of tasks 0 and 3."""


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
    ],
)
def test_a_difference_has_newcombes_interval(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    """Newcombe 1998, table II, method 10."""
    assert difference_interval(*counts) == pytest.approx((low, high), abs=6e-5)
    assert difference_interval(*counts[2:], *counts[:2]) == pytest.approx((-high, -low), abs=6e-5)


def test_without_episodes_nothing_is_known_of_a_difference() -> None:
    assert difference_interval(0, 0, 3, 5) == difference_interval(3, 5, 0, 0) == (-1.0, 1.0)


def index(*kinds: str, run: str = "mine", policies: tuple[str, ...] = ()) -> RobustnessIndex:
    chosen = policies or ("start", "trained")
    conditions = [Condition(policy, kind) for policy in chosen for kind in kinds]
    return RobustnessIndex(run, "libero_object", conditions)


def evaluation(folder: Path, *, ended: bool = True) -> None:
    """What `vlarl eval` leaves of one condition, named by its folder."""
    opened = EvaluationFolder(folder, {"run": "", "profile": "fast"})
    for task, successes in zip((0, 3), SUCCESSES[folder.name], strict=True):
        for number in range(EPISODES):
            opened.add(result(task, number, number < successes))
    progress = Progress("", "abc", iteration=0, version=0)
    opened.write_score(count(opened.results, progress, []), ended=ended)


def evaluates(code: int = 0, *, ended: bool = True) -> Callable[[Condition, Path], int]:
    def evaluate(_: Condition, folder: Path) -> int:
        evaluation(folder, ended=ended)
        return code

    return evaluate


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A run, with its policy and the start in the suite's scenes and in others."""
    run = make_run(tmp_path / "mine")
    assert evaluate_conditions(index("none", "position"), run / "robustness", evaluates()) == 0
    return run


def test_each_condition_is_evaluated_and_all_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_conditions(index("none", "position"), tmp_path, evaluates()) == 0
    known = read_robustness(tmp_path)
    assert known.index == index("none", "position")
    assert known.policies == ["start", "trained"]
    total = known.total("trained", "position")
    assert total is not None
    assert (total.successes, total.episodes) == (8, 20)
    difference = known.difference("none")
    assert difference is not None
    assert difference.value == pytest.approx(0.4)
    assert difference.interval == difference_interval(18, 20, 10, 20)
    (loss,) = known.losses()
    assert (loss.perturbation, loss.task) == ("position", 3)
    assert loss.difference.text == "-20 points (-51 to +16)"
    said = capsys.readouterr().out
    assert "evaluation 4/4: the trained policy, perturbation: position\n" in said
    low, high = wilson_interval(10, 20)
    assert f"50 % ({100 * low:.0f} % to {100 * high:.0f} %)" in said
    assert "the trained policy loses: position, task 3 (push <b>block 3</b>): -20 points" in said


def test_what_was_cut_short_begins_no_other_and_given_up_episodes_do_not(tmp_path: Path) -> None:
    asked = index("none", "position", policies=("start",))
    assert evaluate_conditions(asked, tmp_path / "cut", evaluates(130, ended=False)) == 130
    assert not (tmp_path / "cut/start-position").exists()
    assert len(read_robustness(tmp_path / "cut").evaluations) == 1
    assert evaluate_conditions(asked, tmp_path / "given-up", evaluates(1)) == 1
    assert len(read_robustness(tmp_path / "given-up").evaluations) == 2


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(_: Condition, __: Path) -> int:
        raise ConfigError("no such policy")

    with pytest.raises(ConfigError, match="no such policy"):
        evaluate_conditions(index("none"), tmp_path / "out", refuse)
    assert not (tmp_path / "out").exists()


def test_a_later_call_adds_to_the_table_of_the_same_run(evaluated: Path) -> None:
    out = evaluated / "robustness"
    called: list[str] = []

    def evaluate(condition: Condition, folder: Path) -> int:
        called.append(condition.folder)
        SUCCESSES.setdefault(folder.name, (1, 1))
        return evaluates()(condition, folder)

    assert evaluate_conditions(index("none", "object"), out, evaluate) == 0
    assert called == ["start-none", "start-object", "trained-none", "trained-object"]
    assert read_robustness(out).perturbations == ["none", "position", "object"]
    with pytest.raises(ConfigError, match="evaluations of mine on libero_object, not of yours on"):
        evaluate_conditions(index("none", run="yours"), out, evaluate)


def test_the_report_has_a_section_for_it(evaluated: Path, tmp_path: Path) -> None:
    section = next(
        one for one in sections_of(group_runs([read_run(evaluated)])) if one.key == "robustness"
    )
    rates, losses = section.tables
    assert rates.head == ["perturbation", "start", "trained", "trained less start"]
    ((none, start, trained, difference), _) = rates.rows
    assert (none, difference) == ("none", "+40 points (+12 to +61)")
    assert isinstance(start, Rate)
    assert isinstance(trained, Rate)
    assert (start.value, trained.value) == (0.5, 0.9)
    assert [row[:3] for row in losses.rows] == [["position", "3", "push <b>block 3</b>"]]
    page, _ = write_report([evaluated], tmp_path / "page.html")
    assert re.search(r"<h2>\s*Robustness", page.read_text(encoding="utf-8"))
    other = make_run(tmp_path / "other")
    assert "robustness" not in {one.key for one in sections_of(group_runs([read_run(other)]))}


def test_a_checkpoint_alone_is_compared_with_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = index("none", "position", run="", policies=("start",))
    assert evaluate_conditions(asked, tmp_path, evaluates()) == 0
    said = capsys.readouterr().out
    assert "trained" not in said
    assert json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))["run"] == ""
    assert read_robustness(tmp_path).losses() == []
