"""What curves and groups are made of."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.report.run_folders import make_run
from vlarl.intervals import wilson_interval
from vlarl_jobs.report.curves import (
    over_runs,
    paired,
    smoothed,
    smoothed_success,
    trailing_sums,
    window_of,
)
from vlarl_jobs.report.groups import differences, group_runs
from vlarl_jobs.report.milestones import milestones
from vlarl_jobs.report.run_folder import read_run

pytestmark = pytest.mark.torch


@given(st.integers(1, 500), st.data())
def test_wilson_bounds_are_the_rates_that_a_score_test_just_accepts(
    episodes: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, episodes))
    z = NormalDist().inv_cdf(0.975)
    for bound in wilson_interval(successes, episodes, z):
        if 1e-9 < bound < 1 - 1e-9:
            deviation = (bound * (1 - bound) / episodes) ** 0.5
            assert abs(successes / episodes - bound) / deviation == pytest.approx(z, rel=1e-6)


def test_smoothed_success_counts_the_episodes_of_its_window() -> None:
    rates, episodes = np.array([0.5, 0.0, 1.0]), np.array([4.0, 8.0, 2.0])
    band = smoothed_success(np.arange(3.0), rates, episodes, window=2)
    assert band.middle == pytest.approx([2 / 4, 2 / 12, 2 / 10])
    for at, counts in enumerate([(2, 4), (2, 12), (2, 10)]):
        assert (band.low[at], band.high[at]) == pytest.approx(wilson_interval(*counts))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(1, 25))
def test_trailing_sums_are_plain_sums(values: list[float], window: int) -> None:
    plain = [sum(values[max(0, at + 1 - window) : at + 1]) for at in range(len(values))]
    assert trailing_sums(np.array(values), window) == pytest.approx(plain, abs=1e-9)


def test_smoothing_leaves_out_what_is_not_known() -> None:
    values = np.array([np.nan, 1.0, 3.0, np.nan, 5.0])
    assert smoothed(values, 2) == pytest.approx([np.nan, 1, 2, np.nan, 5], nan_ok=True)


def test_a_window_holds_a_hundred_episodes_but_never_most_of_a_run() -> None:
    assert window_of(np.full(100, 20.0)) == 5
    assert window_of(np.full(10, 20.0)) == 2
    assert window_of(np.full(3, 1.0)) == 1
    assert window_of(np.full(50, 500.0)) == 1
    assert window_of(np.full(2000, 500.0)) == 40


def test_points_are_paired_as_far_as_all_runs_have_them() -> None:
    band = paired(
        [
            (np.array([1.0, 2.0, 9.0]), np.array([0.0, 1.0, 9.0])),
            (np.array([3.0, 4.0]), np.array([2.0, 5.0])),
        ]
    )
    assert (band.x.tolist(), band.middle.tolist()) == ([2, 3], [1, 3])
    assert (band.low.tolist(), band.high.tolist()) == ([0, 1], [2, 5])


def test_a_band_of_runs_leaves_out_nothing_that_lies_between() -> None:
    """A slower run's peak lies where the other has no point."""
    fast = (np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.1, 0.2, 0.3]))
    slow = (np.array([0.0, 1.5, 2.5, 4.0]), np.array([0.0, 0.9, 0.0, 0.4]))
    band = over_runs([fast, slow])
    assert band is not None
    assert band.x.tolist() == [0, 1, 1.5, 2, 2.5, 3]
    for x, y in (fast, slow):
        inside = np.linspace(0, 3, 61)
        line = np.interp(inside, x, y)
        assert (np.interp(inside, band.x, band.low) <= line + 1e-9).all()
        assert (np.interp(inside, band.x, band.high) >= line - 1e-9).all()


def test_runs_of_other_lengths_meet_where_all_of_them_went() -> None:
    long = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    short = (np.array([5.0, np.nan, 15.0, 16.0]), np.array([7.0, 1.0, 17.0, np.nan]))
    band = over_runs([long, (short[0], np.array([7.0, np.nan, 17.0, np.nan]))])
    assert band is not None
    assert (band.x[0], band.x[-1]) == (5, 15)
    assert band.middle == pytest.approx(band.x + 1)
    assert band.high - band.low == pytest.approx(np.full(len(band.x), 2.0))
    apart = (np.array([30.0, 31.0]), np.array([1.0, 1.0]))
    assert over_runs([long, apart]) is None
    assert over_runs([long, (np.array([1.0]), np.array([np.nan]))]) is None


def test_runs_that_differ_in_their_seed_belong_together(run_dirs: list[Path]) -> None:
    runs = [read_run(path) for path in run_dirs]
    same, other = group_runs(runs)
    assert ([run.name for run in same.runs], same.seeds) == (["a", "b"], "1, 2")
    assert [run.name for run in other.runs] == ["longer"]
    assert (same.label, other.label) == ("iterations 6", "iterations 9")
    assert differences([same.first, other.first]) == ["trainer.iterations"]
    (alone,) = group_runs(runs[:2])
    assert alone.label == "a and 1 more"


def test_the_same_runs_are_told_apart_by_name_where_much_differs(
    run_dirs: list[Path], tmp_path: Path
) -> None:
    third = make_run(tmp_path / "third", wanted=8, tasks=(1,), config={"unnorm_key": "x"})
    groups = group_runs([read_run(run_dirs[0]), read_run(third)])
    assert [group.label for group in groups] == ["a", "third"]


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        ([(0, 3, 6)], [("before training", 0, 20), ("after 6 iterations", 12, 20)]),
        ([(6,)], [("after 6 iterations", 12, 20)]),
        ([()], []),
        # One seed has got further than the other.
        ([(0, 1, 6), (0, 1)], [("before training", 0, 40), ("after 1 iteration", 4, 40)]),
        (
            [(2, 5), (3, 6)],
            [("after 2 to 3 iterations", 10, 40), ("after 5 to 6 iterations", 22, 40)],
        ),
        ([(2, 5), ()], [("after 2 iterations", 4, 20), ("after 5 iterations", 10, 20)]),
    ],
)
def test_runs_are_compared_where_all_have_been_evaluated(
    tmp_path: Path, schedules: list[tuple[int, ...]], expected: list[tuple[str, int, int]]
) -> None:
    runs = [
        read_run(make_run(tmp_path / f"run-{seed}", seed=seed, evaluated=schedule))
        for seed, schedule in enumerate(schedules)
    ]
    (group,) = group_runs(runs)
    found = [(one.when, one.total.successes, one.total.episodes) for one in milestones(group)]
    assert found == expected
