"""The table's numbers against ones computed by hand, and its three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.ablation.tables import make_all, plan_in
from vlarl.config import AblationConfig, save_config
from vlarl_cli import app
from vlarl_jobs.ablation.numbers import Outcome, Row, Spread, rows_of
from vlarl_jobs.ablation.plan import Ablation
from vlarl_jobs.ablation.table import read_table

pytestmark = pytest.mark.torch

PAPER = "[paper]\nfull = 90.2\nfast = 0.2\nhot = { success = 90.2, against = 85.8 }\n"
ENDS = {"full-7": 5, "hot-7": 7, "fast-7": 1, "full-8": 6, "hot-8": 6, "fast-8": 2}


def finished(tmp_path: Path, ends: dict[str, int]) -> Ablation:
    """A table whose runs with an end are finished."""
    ablation = plan_in(tmp_path, PAPER)
    make_all(ablation, ablation.out, ends)
    for run in ablation.runs:
        if run.name in ends:
            save_config(run.config, run.folder)
    return ablation


def approximately(mean: float, low: float, high: float) -> object:
    return pytest.approx((mean, low, high))


def numbers(spread: Spread | None) -> tuple[float, float, float]:
    assert spread is not None
    return spread.mean, spread.low, spread.high


def test_the_numbers_are_those_of_the_runs(tmp_path: Path) -> None:
    full, hot, fast = read_table(finished(tmp_path, ENDS)).rows
    assert [row.variant for row in (full, hot, fast)] == ["full", "hot", "fast"]
    assert (full.seeds, full.wanted) == ([7, 8], 2)
    assert numbers(full.start) == approximately(0.2, 0.2, 0.2)
    assert numbers(full.end) == approximately(0.55, 0.5, 0.6)
    assert numbers(hot.end) == approximately(0.65, 0.6, 0.7)
    # Seed by seed: 7 - 5 and 6 - 6 of ten, 1 - 5 and 2 - 6.
    assert full.difference is None
    assert numbers(hot.difference) == approximately(0.1, 0.0, 0.2)
    assert numbers(fast.difference) == approximately(-0.4, -0.4, -0.4)
    # The last two of 10, 20, ... 60 %.
    assert numbers(full.training) == approximately(0.55, 0.55, 0.55)
    assert numbers(full.episodes) == approximately(120, 120, 120)
    # Six iterations of a minute, three evaluations of half a minute.
    assert numbers(full.seconds) == approximately(450, 450, 450)


def test_the_papers_effect_is_compared_by_its_sign(tmp_path: Path) -> None:
    full, hot, fast = read_table(finished(tmp_path, ENDS)).rows
    assert (full.paper, full.paper_difference, full.agrees) == (pytest.approx(0.902), None, None)
    assert hot.paper_difference == pytest.approx(0.044), "not compared with what was said"
    assert hot.agrees == "open", "one seed gains, one doesn't"
    assert fast.paper_difference == pytest.approx(-0.9)
    assert fast.agrees == "yes"


@pytest.mark.parametrize(
    ("ends", "paper", "agrees"),
    [
        ((0.4, 0.3), 10.0, "yes"),
        ((0.6, 0.7), 10.0, "no"),
        ((0.4, 0.7), 10.0, "open"),
        ((0.5, 0.5), 10.0, "open"),
        ((0.4, 0.3), 50.0, None),
        ((None, None), 10.0, None),
    ],
)
def test_seeds_must_agree_to_say_yes_or_no(
    ends: tuple[float | None, ...], paper: float, agrees: str | None
) -> None:
    config = AblationConfig.model_validate(
        {
            "name": "a",
            "base": "a.toml",
            "seeds": [1, 2],
            "variants": {"full": {}, "less": {}},
            "paper": {"full": 50.0, "less": paper},
        }
    )

    def outcomes(ends: tuple[float | None, ...]) -> list[Outcome]:
        return [Outcome(seed, 0.1, end, 0.1, 10, 1) for seed, end in enumerate(ends, 1)]

    rows = rows_of(config, {"full": outcomes((0.5, 0.5)), "less": outcomes(ends)})
    assert rows[1].agrees == agrees


def test_only_finished_runs_count_and_seeds_are_paired(tmp_path: Path) -> None:
    ablation = finished(tmp_path, {"full-7": 5, "full-8": 6, "hot-8": 7})
    half = ablation.runs[1]
    make_all(plan_in(tmp_path / "other"), tmp_path / "made", {"hot-7": 9})
    save_config(half.config, half.folder)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        lines = (tmp_path / "made" / "hot-7" / name).read_text().splitlines(keepends=True)
        (half.folder / name).write_text("".join(lines[: 4 if name == "metrics.jsonl" else 2]))
    table = read_table(ablation)
    _, hot, fast = table.rows
    assert (hot.seeds, numbers(hot.end)) == ([8], approximately(0.7, 0.7, 0.7))
    assert numbers(hot.difference) == approximately(0.1, 0.1, 0.1)
    assert fast == Row("fast", [], 2, *[None] * 6, 0.002, pytest.approx(-0.9), None)
    said = ["hot-7 not finished (4 of 6 iterations, greedy success 30 % after 3)"]
    assert table.remarks == said
    assert half.folder in table.folders


def test_the_command_shows_and_writes_the_table(tmp_path: Path) -> None:
    ablation = finished(tmp_path, ENDS)
    shown = CliRunner().invoke(
        app,
        ["ablate", str(tmp_path / "small.toml"), "--out", str(ablation.out), "--table"],
        env={"COLUMNS": "240"},
    )
    assert shown.exit_code == 0, shown.output
    rows = [line.split("│")[1:-1] for line in shown.output.splitlines() if line.startswith("│")]
    training = ["55.0", "120", "8 min"]
    expected = {
        "full": ("55.0 (50.0 to 60.0)", "–", *training, "90.2", "–"),
        "hot": ("65.0 (60.0 to 70.0)", "+10.0 (+0.0 to +20.0)", *training, "90.2 (+4.4)", "open"),
        "fast": ("15.0 (10.0 to 20.0)", "−40.0", *training, "0.2 (−90.0)", "yes"),
    }
    wanted = [[name, "2/2", "20.0", *cells] for name, cells in expected.items()]
    assert [[cell.strip() for cell in row] for row in rows] == wanted
    lines = (ablation.out / "table.md").read_text().splitlines()
    assert lines[2:] == [f"| {' | '.join(cells)} |" for cells in wanted]
    written = json.loads((ablation.out / "table.json").read_text())
    assert [row["variant"] for row in written["variants"]] == ["full", "hot", "fast"]
    assert written["variants"][1]["end"] == pytest.approx({"mean": 0.65, "low": 0.6, "high": 0.7})
    assert "<html" in (ablation.out / "report.html").read_text()


def test_a_table_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    ablation = plan_in(tmp_path)
    refused = CliRunner().invoke(
        app, ["ablate", str(tmp_path / "small.toml"), "--out", str(ablation.out), "--table"]
    )
    assert refused.exit_code == 1
    assert refused.output == (
        f"error: {ablation.out}: no run has begun; leave --table out to start\n"
    )
