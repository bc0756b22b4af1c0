"""Pictures show the run's numbers, and fit into a page."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from tests.unit.report.run_folders import (
    EVALUATION_SECONDS,
    SECONDS,
    evaluate,
    make_run,
)
from vlarl.intervals import wilson_interval
from vlarl_jobs.report.figures.coverage import coverage_of, principal_plane
from vlarl_jobs.report.figures.curriculum import curriculum_panels, curriculum_tasks, task_table
from vlarl_jobs.report.figures.health import health_of
from vlarl_jobs.report.figures.panel import draw, short_number
from vlarl_jobs.report.figures.phases import phase_seconds
from vlarl_jobs.report.figures.success import evaluated_success, training_success
from vlarl_jobs.report.films import choose, clip_of
from vlarl_jobs.report.groups import group_runs
from vlarl_jobs.report.records import Film
from vlarl_jobs.report.run_folder import read_run
from vlarl_jobs.report.theme import VARIABLES, colour_variables

pytestmark = pytest.mark.torch


def test_success_is_drawn_with_the_intervals_of_its_episodes(run_dir: Path) -> None:
    run = read_run(run_dir)
    trained = training_success(run, run.env_steps)
    assert trained.middle == pytest.approx(run.metric("success_rate"))  # a window of one
    assert (trained.low[2], trained.high[2]) == pytest.approx(wilson_interval(6, 20))
    greedy = evaluated_success(run, lambda _, one: float(one.env_steps))
    assert (greedy.x.tolist(), greedy.middle.tolist()) == ([0, 300, 600], [0, 0.3, 0.6])
    assert (greedy.low[2], greedy.high[2]) == pytest.approx(wilson_interval(12, 20))


def test_phases_sum_up_to_the_time_of_work(run_dir: Path) -> None:
    run = read_run(run_dir)
    phases = phase_seconds(run)
    assert sum(float(one.sum()) for one in phases.values()) == pytest.approx(
        run.worked_hours * 3600
    )
    assert phases["rollout: policy"].tolist() == [30 * 40 / 100] * 6
    assert phases["learning: updates"].tolist() == [15] * 6
    assert phases["other"].tolist() == [SECONDS - 30 - 20 - 2 - 3] * 6
    # Before the first iteration, after the third and after the sixth.
    assert (phases["evaluation"] / EVALUATION_SECONDS).tolist() == [1, 0, 1, 0, 0, 1]


def test_the_curriculum_is_that_of_the_tasks(run_dir: Path, tmp_path: Path) -> None:
    (group,) = group_runs([read_run(run_dir)])
    assert curriculum_tasks(group.first) == [0, 3]
    table = task_table(group, "task_success", [0, 3])
    assert table.tolist() == [[0, 0, 0, 1 / 4, 2 / 5, 3 / 6]] * 2
    assert len(curriculum_panels([group])) == 2
    alone = group_runs([read_run(make_run(tmp_path / "one-task", tasks=(4,)))])
    assert curriculum_panels(alone) == []


def test_coverage_compares_the_first_policy_with_the_latest(run_dirs: list[Path]) -> None:
    group, _ = group_runs([read_run(path) for path in run_dirs])
    coverage = coverage_of(group)
    assert coverage is not None
    assert coverage.iterations == (1, 6)
    assert coverage.first.shape == coverage.latest.shape == (160, 7)
    assert np.allclose(coverage.first.mean(axis=0), 0, atol=0.06)
    assert np.allclose(coverage.latest.mean(axis=0), 0.5, atol=0.06)


def test_the_projection_keeps_what_varies_most() -> None:
    generator = np.random.default_rng(3)
    common = generator.normal(size=(50, 1))
    values = np.hstack([common, 5 * common, 0.1 * generator.normal(size=(50, 1)), np.ones((50, 1))])
    values[7, 3] = 20
    first, latest, shares = principal_plane(values[:30], values[30:])
    assert (first.shape, latest.shape) == ((30, 2), (20, 2))
    # Two of three scaled dimensions that vary are one; the fourth is constant but once.
    assert shares == pytest.approx((2 / 3, 1 / 3), abs=0.05)
    along = np.concatenate([first, latest])[:, 0]
    assert abs(np.corrcoef(along, common[:, 0])[0, 1]) > 0.99


def test_health_adds_up(run_dir: Path) -> None:
    health = health_of(read_run(run_dir))
    assert (health.versions, health.largest_gap) == ((1, 6), 1e-6)
    assert (health.missing, health.restarts, health.resumptions) == (6, 3, 0)
    assert (health.longest_pause, health.stale, health.stopped) == (0.5, 0.5, 3)


def test_a_picture_takes_the_pages_colours_and_font() -> None:
    def paint(axes: Axes) -> None:
        axes.plot([1, 2], [3, 4], marker="o", color="#0a6ab5")
        axes.set_xlabel("5 $ a < b $")

    panel = draw("some-name", 'A "title"', paint)
    assert "var(--blue)" in panel.svg
    assert not re.search(r"#[0-9a-f]{6}", panel.svg), "a colour that the dark scheme can't change"
    assert "http" not in panel.svg
    assert "font-family" not in panel.svg
    assert "DejaVu" not in panel.svg
    assert "5 $ a &lt; b $" in panel.svg
    assert 'aria-label="A &quot;title&quot;"' in panel.svg
    ids = re.findall(r' id="([^"]*)"', panel.svg)
    assert ids
    assert all(one.startswith("some-name-") for one in ids)
    assert Image.open(io.BytesIO(panel.png)).width > 600


def test_both_schemes_have_every_colour() -> None:
    light, dark = (
        dict(re.findall(r"(--[\w-]+): (#\w+);", colour_variables(dark=scheme)))
        for scheme in (False, True)
    )
    assert light.keys() == dark.keys() == {name[4:-1] for name in VARIABLES.values()}
    assert len(set(light.values())) == len(light), "two roles would become one"


def test_counts_are_short() -> None:
    assert [short_number(n) for n in (0, 950, 2500, 1234567)] == ["0", "950", "2.5k", "1.23M"]


def test_films_are_chosen_in_turn_and_move_on_the_page(tmp_path: Path) -> None:
    films = [
        Film(tmp_path, "r", task, state, success)
        for success in (False, True)
        for task in (0, 1, 2)
        for state in (0, 1)
    ]
    chosen = choose(films)
    assert [film.success for film in chosen] == [True, False] * 3
    assert {film.task for film in chosen} == {0, 1, 2}

    folder = evaluate(tmp_path / "run", tmp_path / "eval")
    film = Film(folder / "videos/task-00_init-01_failure.mp4", "run", 0, 1, success=False)
    clip = clip_of(film, name_run=True)
    assert clip is not None
    assert clip.caption == "run, task 0, initial state 1: failure"
    assert clip.moving.startswith("data:image/webp;base64,")
    (folder / "videos/task-00_init-01_failure.mp4").write_bytes(b"no film")
    assert clip_of(film) is None
