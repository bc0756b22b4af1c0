"""Runs whose algorithm compares episodes of groups, and has no critic; and runs of before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vlarl.config import RunConfig, dump_toml
from vlarl_jobs.report.content import sections_of
from vlarl_jobs.report.episode_groups import episode_groups
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.figures.episode_groups import ordered_groups
from vlarl_jobs.report.figures.health import before_first_step
from vlarl_jobs.report.groups import group_runs
from vlarl_jobs.report.health import health
from vlarl_jobs.report.report import write_report
from vlarl_jobs.report.run_folder import read_run

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
ITERATIONS = [
    # kept, too many successes, too few, void, orders, episodes, spent for one, outside, k3
    (3, 0, 1, 0, 1.0, 32, 32 / 24, 0.0, 1e-7),
    (2, 1, 3, 1, 2.0, 56, 56 / 14, 0.002, 3e-7),
    (0, 4, 0, 0, 4.0, 32, None, None, None),
]
NAMES = (
    *("groups_kept", "groups_dropped_success", "groups_dropped_failure", "groups_void"),
    *("group_attempts", "episodes", "episodes_per_learned", "start_outside_clip", "start_k3"),
)


def make_group_run(path: Path, algorithm: str = "grpo") -> Path:
    """A run of three iterations, in the last of which no group was kept."""
    path.mkdir()
    trainer = {"algorithm": algorithm, "iterations": 3, "episodes_per_iteration": 32}
    config = RunConfig.model_validate({"name": path.name, "trainer": trainer})
    (path / "config.toml").write_text(dump_toml(config))
    lines = []
    for number, values in enumerate(ITERATIONS):
        known = {name: one for name, one in zip(NAMES, values, strict=True) if one is not None}
        place = {"iteration": number, "policy_version": number + 1, "env_steps": 100 + 90 * number}
        lines.append(place | {"success_rate": 0.25 * number, "episode_return": 0.1} | known)
        if known["groups_kept"]:
            lines[-1] |= {"group_deviation": 0.4, "entropy": 2.0, "logprob_gap": 2e-6}
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_groups_are_counted(tmp_path: Path) -> None:
    found = ordered_groups(read_run(make_group_run(tmp_path / "run")))
    assert list(found.outcomes.values()) == [5, 5, 4, 1]
    assert found.attempts == pytest.approx(7 / 3)
    # 24, 14 and no episodes were learned from.
    assert found.per_learned == pytest.approx((32 + 56 + 32) / (24 + 14))


def test_the_section_is_there_for_groups_alone(tmp_path: Path) -> None:
    plain = read_run(ROOT / "docs/results/reach/seed-7")
    assert episode_groups(group_runs([plain])) is None
    both = group_runs([read_run(make_group_run(tmp_path / "run")), plain])
    section = episode_groups(both)
    assert section is not None
    (table,) = section.tables
    assert table.rows == [["run", "5", "5", "4", "1", "2.33", "3.16"]]
    names = [panel.name for panel in section.panels]
    assert names == [
        "episode-groups-0",
        "group-attempts",
        "episodes-per-learned",
        "group-deviation",
    ]
    for legend in ("kept", "too many successes", "too few successes", "void"):
        assert legend in section.panels[0].svg


def test_what_was_off_before_the_first_step_is_in_every_report(tmp_path: Path) -> None:
    run = read_run(make_group_run(tmp_path / "run"))
    found = before_first_step(run)
    assert found["start_outside_clip"] == pytest.approx((0.001, 0.002))
    assert found["start_k3"] == pytest.approx((2e-7, 3e-7))
    plain = read_run(ROOT / "docs/results/reach/seed-7")
    assert np.isnan(before_first_step(plain)["start_k3"]).all()
    _, table = health(group_runs([run, plain])).tables
    assert table.title == "Before the first step of an iteration"
    assert table.rows == [
        ["run", "0", "0.001", "0.002", "2e-07", "3e-07"],
        [plain.name, "0", "–", "–", "–", "–"],
    ]


def test_without_a_critic_nothing_is_said_of_one(tmp_path: Path) -> None:
    def dynamics(path: Path) -> tuple[str, list[str]]:
        sections = sections_of(group_runs([read_run(path)]))
        (section,) = [one for one in sections if one.key == "dynamics"]
        return section.reading, [panel.name for panel in section.panels]

    reading, names = dynamics(make_group_run(tmp_path / "run", "rloo"))
    assert "critic" not in reading
    assert names == ["episode-return", "entropy"]
    reading, names = dynamics(ROOT / "docs/results/reach/seed-7")
    assert "The critic should explain more and more" in reading
    assert names[-2:] == ["value-loss", "explained-variance"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_page_of_groups_is_written(tmp_path: Path) -> None:
    page, _ = write_report([make_group_run(tmp_path / "run")], None)
    text = page.read_text()
    assert '<section id="groups">' in text
    assert "Before the first step of an iteration" in text
    assert not re.search(r"\bnan\b", text)


def test_a_folder_of_runs_stands_for_them(tmp_path: Path) -> None:
    for algorithm in ("grpo", "rloo"):
        make_group_run(tmp_path / algorithm, algorithm)
    page, _ = write_report([tmp_path], None)
    assert page == tmp_path / "comparison.html"
    assert "<title>Comparison of " in page.read_text()
    with pytest.raises(ReportError, match="named 2 times"):
        write_report([tmp_path, tmp_path / "rloo"], None)
