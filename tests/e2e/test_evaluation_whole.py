"""`vlarl eval` with real services: repeatable, resumable, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import ROOT, descendants, end, survivors
from tests.integration.trainer.test_evaluator import config_for, trained_run
from vlarl.config import TasksConfig, save_config
from vlarl.data.dataset import read_dataset
from vlarl.images import decode_image

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

# A policy whose actions end somewhere, on a scene that is quick to build.
SETTINGS = {
    "unnorm_key": "libero_spatial",
    "env.profile": "fast",
    "env.render_size": "84",
    "env.action_repeat": "4",
    "tasks.max_actions": "6",
    "policy.cpu_threads": "1",
    "policy.max_batch": "8",
    "queue.claim_after_seconds": "5.0",
}
EPISODES = ("--episodes-per-task", "8")


def start(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    settings = [part for k, v in SETTINGS.items() for part in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "vlarl", "eval", "--out", str(out), *settings, *arguments]
    with out.with_suffix(".txt").open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def rows(out: Path) -> list[dict[str, Any]]:
    file = out / "episodes.jsonl"
    if not file.exists():
        return []
    found = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return sorted(
        ({k: v for k, v in row.items() if k != "seconds"} for row in found),
        key=lambda row: row["init_state"],
    )


def said(out: Path) -> str:
    return out.with_suffix(".txt").read_text()


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a policy of its own, in the simulator's quickest suite."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    trained_run(run_dir, checkpoint, version=5)
    save_config(config_for(checkpoint, tasks=TasksConfig(suite="approach")), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def calm(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed evaluation of that policy, one simulator's, which records."""
    out = tmp_path_factory.mktemp("evaluations") / "calm"
    process = start(out, "--run", str(trained), *EPISODES, "--record", "--set", "env.processes=1")
    try:
        assert process.wait(300) == 0, said(out)
    finally:
        end(process)
    return out


def test_killed_and_gone_on_with_it_gives_what_an_undisturbed_one_gives(
    calm: Path, trained: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    killed = tmp_path / "killed"
    arguments = ["--run", str(trained), *EPISODES]
    process = start(killed, *arguments)
    started.append(process)
    deadline = time.monotonic() + 300
    while len(rows(killed)) < 2:
        assert process.poll() is None, said(killed)
        assert time.monotonic() < deadline, said(killed)
        time.sleep(0.05)
    family = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert survivors(family, 30) == set()
    before = rows(killed)
    assert len(before) < 8, "it was killed too late to prove anything"
    text = (killed / "episodes.jsonl").read_text()
    process = start(killed, *arguments, "--videos", "1")
    started.append(process)
    assert process.wait(300) == 0, said(killed)

    assert (killed / "episodes.jsonl").read_text().startswith(text), "an episode was run again"
    assert rows(killed) == rows(calm)
    assert [row["init_state"] for row in rows(killed)] == list(range(8))
    assert len({row["digest"] for row in rows(killed)}) > 1, "the policy ignores what it sees"
    assert list((killed / "videos").glob("task-00_init-*.mp4"))
    score = json.loads((killed / "evaluation.json").read_text())
    assert score["complete"]
    assert score["protocol"]["profile"] == "fast"
    assert "95 % interval" in said(killed)


def test_what_is_recorded_is_what_was_done(calm: Path) -> None:
    recorded = {
        -1 - int(task.placements[0]): task for task in read_dataset(calm / "rollouts").tasks
    }
    for row in rows(calm):
        task = recorded[row["init_state"]]
        assert len(task.frames) == row["actions"]
        assert task.succeeded.tolist() == [row["success"]] * row["actions"]
        assert {decode_image(frame).shape for frame in task.frames} == {(84, 84, 3)}


def test_a_runs_last_policy_is_published_and_evaluated(calm: Path) -> None:
    assert {row["policy_version"] for row in rows(calm)} == {5}
    assert (json.loads((calm / "evaluation.json").read_text()))["protocol"]["run"] == "run"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--suite", "libero_11"], "unknown suite 'libero_11'; did you mean"),
        (["--suite", "approach", "--tasks", "3"], "tasks 0 to 0, so there is no number 3"),
        (["--suite", "approach", "--set", "unnorm_key=x"], "no dataset statistics named 'x'"),
    ],
)
def test_what_does_not_exist_is_one_sentence_before_anything_starts(
    tmp_path: Path,
    checkpoint: Path,
    started: list[subprocess.Popen[bytes]],
    arguments: list[str],
    sentence: str,
) -> None:
    out = tmp_path / "out"
    settings = [part for k, v in SETTINGS.items() for part in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "vlarl", "eval", "--checkpoint", str(checkpoint)]
    done = subprocess.run(
        [*command, "--out", str(out), *settings, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not out.exists()
