"""`vlarl sft` with `[simulation]`: what is said of a checkpoint is what `vlarl eval` says of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT
from tests.integration.trainer.demonstrated import sft_config, task_samples, write_dataset
from vlarl.config import dump_toml
from vlarl.json_lines import read_lines
from vlarl.launch.torchrun import ranks_command
from vlarl_jobs.sft.main import run

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = """
[tasks]
suite = "approach"
max_actions = 4
[policy]
cpu_threads = 1
max_batch = 8
[env]
profile = "fast"
render_size = 84
action_repeat = 4
"""


def vlarl(*arguments: str, ranks: int = 1) -> str:
    done = subprocess.run(
        [*ranks_command(ranks), "-m", "vlarl", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_two_ranks_are_evaluated_as_they_go_and_a_resumed_run_not_again(tmp_path: Path) -> None:
    tasks, run_dir = tmp_path / "tasks.toml", tmp_path / "run"
    tasks.write_text(TASKS)
    dataset = write_dataset(tmp_path / "data", task_samples(suite="approach", size=84))
    simulation = {
        "config": tasks,
        "every_steps": 3,
        "episodes_per_task": 3,
        "overrides": ["env.processes=1"],
    }
    steps = {"steps": 3, "evaluate_every": 1}
    config = sft_config(dataset, simulation=simulation, training=steps, export="last")
    file = tmp_path / "sft.toml"
    file.write_text(dump_toml(config))
    said = vlarl("sft", str(file), "--run-dir", str(run_dir), ranks=2)
    assert said.count("success in the simulator") == 1

    evaluated = tmp_path / "eval"
    arguments = ["--checkpoint", str(run_dir / "checkpoint"), "--episodes-per-task", "3"]
    arguments += ["--set", "env.processes=1"]
    vlarl("eval", str(tasks), *arguments, "--out", str(evaluated))
    last = run_dir / "evaluations/step-0000003"
    acted = [
        {(row["init_state"], row["digest"]) for row in read_lines(folder / "episodes.jsonl")}
        for folder in (evaluated, last)
    ]
    assert acted[0] == acted[1]
    assert len(acted[0]) == 3
    assert not (last / "checkpoint").exists()

    lines = list(read_lines(run_dir / "metrics.jsonl"))
    found = [(line["step"], line["success_rate"]) for line in lines if "success_rate" in line]
    total = json.loads((last / "evaluation.json").read_text())["total"]
    assert found == [(3, total["success_rate"])]

    before = (last / "evaluation.json").stat().st_mtime_ns
    vlarl("sft", "--resume", str(run_dir))
    assert (last / "evaluation.json").stat().st_mtime_ns == before
    assert list(read_lines(run_dir / "metrics.jsonl")) == lines


def test_an_evaluation_that_fails_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_dataset(tmp_path / "data")
    simulation = {"config": tmp_path / "none.toml", "every_steps": 2}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run(sft_config(dataset, simulation=simulation), run_dir)
    assert (run_dir / "checkpoint/config.json").exists()
    assert "the evaluation after step 2 failed (exit code" in caplog.text
    # The command frames its error and breaks the path where the line ends.
    assert "none.toml:can'tberead" in re.sub(r"[│\s]", "", caplog.text)
