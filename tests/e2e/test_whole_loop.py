"""`make train` in small: the loop closes, survives, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, Run, descendants, survivors, wait_for
from vlarl.config import PolicyConfig, QueueConfig, load_config
from vlarl_jobs.report.report import write_report
from vlarl_jobs.report.run_folder import read_run

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]


def vlarl(*arguments: str) -> tuple[int, str]:
    """A command's exit code, and what it says."""
    command = [sys.executable, "-m", "vlarl", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_loop_closes(
    tmp_path: Path, checkpoint: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    run = Run(tmp_path / "a run's [b]", checkpoint)
    process = run.start()
    started.append(process)
    wait_for(lambda: len(run.iterations()) >= 1, process, run)
    family = descendants(process.pid)
    for command in ("up", "train"):
        code, said = vlarl(command, "--resume", str(run.run_dir))
        assert code == 1
        assert said.startswith(
            f"error: {run.run_dir} is in use by `vlarl up`, process {process.pid} on "
        )
    code, said = vlarl("status", str(run.run_dir))
    assert code == 0, said
    assert "of 3 iterations" in said
    assert said.count("serving") == 4
    assert process.wait(600) == 0, run.output.read_text()
    code, said = vlarl("status", str(run.run_dir))
    assert (code, "nothing of" in said) == (1, True), said
    assert run.output.read_text().strip().endswith(f"report {shlex.quote(str(run.run_dir))})")
    lines = run.iterations()
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    # The first iteration warms the critic up, and leaves the policy as it is.
    assert [line["policy_version"] for line in lines] == [1, 1, 2]
    assert max(line["logprob_gap"] for line in lines) < 1e-4
    evaluation = json.loads((run.run_dir / "evaluations.jsonl").read_text())
    assert (evaluation["policy_version"], evaluation["tasks"]["0"]["episodes"]) == (3, 1)
    assert survivors(family) == set()
    assert not (run.run_dir / ".owner").exists()
    saved = load_config(run.run_dir / "config.toml")
    assert saved.queue.url == QueueConfig().url, "where this start's queue was isn't the run's"
    assert saved.policy.addresses == PolicyConfig().addresses
    page, pictures = write_report([run.run_dir], out=None)
    assert "3 of 3 iterations complete" in page.read_text()
    assert (pictures / "actions-plane-0.png").exists(), "no actions of two policies"


# Of the services, those with children of their own, an engine and simulators; the queue is none.
@pytest.mark.parametrize("name", ["policy", "env", "queue"])
def test_a_services_death_ends_the_run_and_is_named(
    tmp_path: Path, checkpoint: Path, started: list[subprocess.Popen[bytes]], name: str
) -> None:
    run = Run(tmp_path / "run", checkpoint, **{"trainer.iterations": "50"})
    process = run.start()
    started.append(process)
    wait_for(lambda: len(run.iterations()) >= 1, process, run)
    family = descendants(process.pid)
    victim = run.service(name)
    os.kill(victim, signal.SIGKILL)
    assert process.wait(120) == 1
    assert f"the {name} service died (killed by SIGKILL)" in " ".join(
        run.output.read_text().split()
    )
    assert survivors(family) == set()


def test_a_killed_trainer_and_ctrl_c_cost_no_episode(
    tmp_path: Path, checkpoint: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    run = Run(tmp_path / "run", checkpoint)
    process = run.start()
    started.append(process)
    wait_for(lambda: len(run.iterations()) >= 1, process, run)
    os.kill(run.service("trainer"), signal.SIGKILL)
    assert process.wait(120) not in {0, 130}

    process = run.start(resume=True)
    started.append(process)
    wait_for(lambda: len(run.iterations()) >= 2, process, run)
    family = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert survivors(family) == set()

    process = run.start(resume=True)
    started.append(process)
    assert process.wait(600) == 0, run.output.read_text()
    assert "is in use by" not in run.output.read_text()
    lines = run.iterations()
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    assert all(line["episodes"] == 3 for line in lines)
    assert len(read_run(run.run_dir).starts) == 3
