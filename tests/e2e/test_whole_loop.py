"""`make train` in small: the loop closes, survives, and leaves nothing behind. A real Prometheus
beside it has something to show in every panel of every dashboard.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.prometheus import Prometheus, check_panels, metrics_addresses
from tests.e2e.stack import ROOT, Run, descendants, end, of_groups, survivors, wait_for
from tests.tiny_oft import make_tiny_oft
from tests.unit.deploy.tools import find_tool
from vlarl.config import PolicyConfig, QueueConfig, load_config
from vlarl.rpc.channel import open_sync_channel
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from vlarl_jobs.report.report import write_report
from vlarl_jobs.report.run_folder import read_run

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]


def vlarl(*arguments: str) -> tuple[int, str]:
    """A command's exit code, and what it says."""
    command = [sys.executable, "-m", "vlarl", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def addresses(run: Run) -> dict[str, str]:
    """HOST:PORT of each service."""
    lines = (run.run_dir / "addresses.txt").read_text().splitlines()
    return {name: address for name, address, *_ in map(str.split, lines)}


@dataclass(frozen=True)
class Whole:
    """What was seen of a run from its start to its end, while it went on and afterwards."""

    run: Run
    pid: int
    code: int
    family: set[int]
    refused: list[tuple[int, str]]
    status: tuple[int, str]
    status_afterwards: tuple[int, str]
    prometheus: Prometheus | None
    begun: float
    ended: float


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """A run that nothing disturbs, with a learned reward and a Prometheus beside it."""
    folder = tmp_path_factory.mktemp("whole")
    judge, metrics = folder / "judge", folder / "prometheus"
    shutil.copytree(checkpoint, judge)
    (judge / "reward_model.json").write_text('{"version": "untrained"}')
    metrics.mkdir()
    learned = {"reward.model": "rprm", "reward.checkpoint": str(judge), "reward.threads": "1"}
    # What only the last iteration and its evaluation say, the trainer may take along before it has
    # been scraped.
    often = {"evaluation.every_iterations": "1"}
    held = {"trainer.ppo.kl_coefficient": "0.01"}  # or no pass tells how far it is from the start
    run = Run(folder / "a run's [b]", checkpoint, **learned, **often, **held)
    process = run.start()
    prometheus = None
    try:
        wait_for((run.run_dir / "addresses.txt").exists, process, run)
        begun = time.time()
        if program := find_tool("prometheus"):
            prometheus = Prometheus(program, metrics, metrics_addresses(run))
        wait_for(lambda: len(run.iterations()) >= 1, process, run)
        # Or it might end before everybody has asked.
        with open_sync_channel(addresses(run)["trainer"]) as channel:
            trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
            trainer.Pause(trainer_pb2.PauseRequest())
            family = descendants(process.pid)
            refused = [vlarl(command, "--resume", str(run.run_dir)) for command in ("up", "train")]
            status = vlarl("status", str(run.run_dir))
            trainer.Resume(trainer_pb2.ResumeRequest())
        code = process.wait(600)
        ended = time.time()
        afterwards = vlarl("status", str(run.run_dir))
        yield Whole(
            run, process.pid, code, family, refused, status, afterwards, prometheus, begun, ended
        )
    finally:
        end(process)
        if prometheus is not None:
            end(prometheus.process)


def test_the_loop_closes(whole: Whole) -> None:
    run = whole.run
    assert whole.code == 0, run.output.read_text()
    assert run.output.read_text().strip().endswith(f"report {shlex.quote(str(run.run_dir))})")
    lines = run.iterations()
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    # The first iteration warms the critic up, and leaves the policy as it is.
    assert [line["policy_version"] for line in lines] == [1, 1, 2]
    assert max(line["logprob_gap"] for line in lines) < 1e-4
    last = json.loads((run.run_dir / "evaluations.jsonl").read_text().splitlines()[-1])
    assert (last["policy_version"], last["tasks"]["0"]["episodes"]) == (3, 1)
    page, pictures = write_report([run.run_dir], out=None)
    assert "3 of 3 iterations complete" in page.read_text()
    assert (pictures / "actions-plane-0.png").exists(), "no actions of two policies"


def test_a_run_that_is_going_on_is_nobody_elses(whole: Whole) -> None:
    owner = f"{whole.run.run_dir} is in use by `vlarl up`, process {whole.pid} on "
    for code, said in whole.refused:
        assert code == 1
        assert said.startswith(f"error: {owner}")
    assert not (whole.run.run_dir / ".owner").exists()


def test_a_run_tells_its_status_as_long_as_it_goes_on(whole: Whole) -> None:
    code, said = whole.status
    assert code == 0, said
    assert "of 3 iterations" in said
    assert said.count("serving") == 4
    code, said = whole.status_afterwards
    assert (code, "nothing of" in said) == (1, True), said


def test_a_run_that_has_ended_leaves_nothing_behind(whole: Whole) -> None:
    assert survivors(whole.family) == set()
    saved = load_config(whole.run.run_dir / "config.toml")
    assert saved.queue.url == QueueConfig().url, "where this start's queue was isn't the run's"
    assert saved.policy.addresses == PolicyConfig().addresses


def test_a_learned_reward_takes_part(whole: Whole) -> None:
    for line in whole.run.iterations():
        # Nine steps of nothing solved: all that was paid is a tenth of what the judge said.
        assert line["success_rate"] == 0
        assert 0 < line["dense_return"] < 3
        assert line["episode_return"] == pytest.approx(0.1 * line["dense_return"], rel=1e-5)
        assert line["dense_share"] == pytest.approx(1.0)


def test_every_panel_has_something_to_show(whole: Whole) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="requirements/dev.txt has it")
    assert set(metrics_addresses(whole.run)) == {"policy", "env", "reward", "trainer"}
    if whole.prometheus is None:
        pytest.skip("prometheus is not installed here: nothing was asked for the panels")
    check_panels(whole.prometheus, whole.begun, whole.ended)
    rules = whole.prometheus.ask("rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}, rules


def test_services_that_are_killed_and_ctrl_c_cost_no_episode(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """Of groups and of chunks: nothing is solved, so each group is dropped once, and the last one
    is learned from all the same. Two of a chunk's eight actions are executed, and one where the
    limit of three comes. tests/integration/trainer does the same to PPO's trainer, and
    tests/unit/stack/test_stack_ends.py kills the other services, one at a time.
    """
    make_tiny_oft(tmp_path / "chunks")
    own = {"env.replan_after": "2", "env.processes": "1"}
    run = Run(tmp_path / "run", tmp_path / "chunks", **of_groups(), **own)
    process = run.start()
    started.append(process)
    wait_for(lambda: len(run.iterations()) >= 1, process, run)
    family = descendants(process.pid)
    os.kill(run.service("policy"), signal.SIGKILL)
    assert process.wait(120) == 1
    said = " ".join(run.output.read_text().split())
    assert "the policy service died (killed by SIGKILL)" in said
    assert survivors(family) == set()

    process = run.start(resume=True)
    started.append(process)
    wait_for(lambda: len(run.iterations()) >= 2, process, run)
    family = descendants(process.pid)
    for pid in [run.service(name) for name in ("env", "trainer", "queue")]:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(120) not in {0, 130}
    assert survivors(family) == set()

    process = run.start(resume=True)
    started.append(process)
    starts = run.run_dir / "starts.jsonl"
    wait_for(lambda: starts.read_text().count("\n") == 3, process, run)
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
    assert all(line["episodes"] == 6 for line in lines)
    assert all(line["logprob_gap"] < 1e-4 for line in lines)
    assert len(read_run(run.run_dir).starts) == 4
