"""Runs one after the other: order, what is skipped and gone on with, failures, Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.ablation.tables import journal, make_all, plan_in, stand_in
from vlarl.errors import FatalError
from vlarl_jobs.ablation.failures import read_failures
from vlarl_jobs.ablation.plan import Ablation, standing
from vlarl_jobs.ablation.series import Series

pytestmark = pytest.mark.torch

ENDS = {"full-7": 5, "hot-7": 7, "fast-7": 1, "full-8": 6, "hot-8": 6, "fast-8": 2}


@pytest.fixture
def ablation(tmp_path: Path) -> Ablation:
    return plan_in(tmp_path)


@pytest.fixture
def made(tmp_path: Path, ablation: Ablation) -> Path:
    """What the runs come to."""
    make_all(ablation, tmp_path / "made", ENDS)
    return tmp_path / "made"


async def run_all(ablation: Ablation, made: Path) -> int:
    series = Series(ablation, stand_in(made))
    try:
        return await series.run()
    finally:
        await series.stop()


async def test_every_run_is_done_in_order(
    ablation: Ablation, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_all(ablation, made) == 0
    assert journal(made) == list(ENDS)
    assert all(standing(run).finished for run in ablation.runs)
    log = ablation.out / "full-7" / "logs" / "up.log"
    assert log.read_text() == "learning\n"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small: 3 variants x 2 seeds = 6 runs in ")
    assert lines[0].endswith("; 0 finished, 0 begun")
    assert lines[1] == f"full-7 begins; its log: {log}"
    first = r"✓ full-7  greedy success 20 % → 50 %  in \d+ s  1 of 6 runs  ETA "
    assert re.match(first, lines[2])
    assert lines[-1].endswith("6 of 6 runs  ETA 0 s")


async def test_a_tables_folder_may_have_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "läufe [1], it's [bold]mine[/]"
    ablation = plan_in(folder)
    make_all(ablation, folder / "made", ENDS)
    assert await run_all(ablation, folder / "made") == 0
    assert f"= 6 runs in {ablation.out}; 0 finished" in capsys.readouterr().out
    assert (ablation.out / "table.md").exists()


async def test_the_same_again_starts_nothing(ablation: Ablation, made: Path) -> None:
    await run_all(ablation, made)
    assert await run_all(ablation, made) == 0
    assert len(journal(made)) == 6


async def test_a_begun_run_is_gone_on_with(
    ablation: Ablation, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_all(ablation, made)
    metrics = ablation.out / "hot-7" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert await run_all(ablation, made) == 0
    assert journal(made)[6:] == ["hot-7"]
    assert "hot-7 goes on after 2 of 6 iterations;" in capsys.readouterr().out


async def test_a_run_without_its_last_evaluation_is_not_finished(
    ablation: Ablation, made: Path
) -> None:
    await run_all(ablation, made)
    scores = ablation.out / "hot-7" / "evaluations.jsonl"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    assert not standing(ablation.runs[1]).finished
    await run_all(ablation, made)
    assert journal(made)[6:] == ["hot-7"]


async def test_a_failure_is_recorded_and_the_others_go_on(
    ablation: Ablation, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = shutil.move(made / "hot-7", made.parent / "kept")
    assert await run_all(ablation, made) == 1
    assert journal(made) == list(ENDS)
    assert [standing(run).finished for run in ablation.runs] == [
        True,
        False,
        True,
        True,
        True,
        True,
    ]
    shown = capsys.readouterr().out
    assert "hot-7 failed (exit code 1); its log: " in shown
    assert "out of memory" in shown
    assert "1 failed: hot-7; the same command tries again" in shown
    assert read_failures(ablation.out)["hot-7"].startswith("(exit code 1); its log: ")
    assert "- hot-7 failed: (exit code 1)" in (ablation.out / "table.md").read_text()
    shutil.move(kept, made / "hot-7")
    assert await run_all(ablation, made) == 0
    assert journal(made)[6:] == ["hot-7"]
    assert "failed" not in (ablation.out / "table.md").read_text()


async def test_a_damaged_folder_is_that_runs_failure(ablation: Ablation, made: Path) -> None:
    with (made / "hot-7" / "metrics.jsonl").open("a") as file:
        file.write("{broken\n")
    assert await run_all(ablation, made) == 1
    assert journal(made) == list(ENDS)
    assert "line 7: damaged" in read_failures(ablation.out)["hot-7"]
    assert "- hot-7 can't be read: " in (ablation.out / "table.md").read_text()
    with pytest.raises(FatalError, match=r"hot-7/metrics.jsonl, line 7: damaged .*; mend or"):
        await run_all(ablation, made)


async def test_two_in_one_folder_are_refused(ablation: Ablation, made: Path) -> None:
    first = Series(ablation, stand_in(made))
    assert await first.run() == 0
    with pytest.raises(FatalError, match="is in use by `vlarl ablate`, process"):
        await run_all(ablation, made)
    await first.stop()
    assert await run_all(ablation, made) == 0


SLOW = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1])
def end(*_):
    (folder / "ended").write_text("in peace")
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
(folder / "started").write_text("")
time.sleep(600)
"""
INTERRUPTED = """
import asyncio, sys
from pathlib import Path
from tests.unit.ablation.tables import plan_in
from vlarl_jobs.ablation.series import Series
from vlarl.launch.supervisor import supervise

async def main():
    series = Series(plan_in(Path(sys.argv[1])), [sys.executable, "-c", sys.argv[2]])
    return await supervise(series, series.run(), "vlarl ablate small.toml")

sys.exit(asyncio.run(main()))
"""


def test_ctrl_c_ends_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    series = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), SLOW],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "out" / "full-7"
    deadline = time.monotonic() + 60
    while not (folder / "started").exists():
        assert series.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(series.pid, signal.SIGINT)  # as a terminal does
    _, errors = series.communicate(timeout=60)
    assert series.returncode == 130
    assert errors == "interrupted; go on with: vlarl ablate small.toml\n"
    assert (folder / "ended").read_text() == "in peace"
    assert not (tmp_path / "out" / "hot-7").exists()
    assert not (tmp_path / "out" / "failures.jsonl").exists(), "an interruption is no failure"
