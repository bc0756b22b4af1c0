"""Runs on wandb, read back from the files that it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
wandb = pytest.importorskip("wandb", reason="requirements/wandb.txt has it")

from prometheus_client import CollectorRegistry  # noqa: E402

from tests.unit.report.run_folders import make_run  # noqa: E402
from tests.wandb_files import axes, configuration, rows, run_of, started  # noqa: E402
from vlarl.config import LoggingConfig, QueueConfig, RunConfig  # noqa: E402
from vlarl.learning.stage_log import StageLog  # noqa: E402
from vlarl.learning.wandb_run import wandb_mode  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2  # noqa: E402
from vlarl_cli import extras, run  # noqa: E402
from vlarl_trainer.record.metrics import MetricsLog  # noqa: E402

pytestmark = pytest.mark.torch
OFFLINE = LoggingConfig(wandb="offline", wandb_group="seeds", wandb_tags=("a", "b"))
CONFIG = RunConfig(name="mine", logging=OFFLINE, queue=QueueConfig(url="redis://10.9.8.7:6379"))


@pytest.fixture(autouse=True)
def _nobodys_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings and no folders of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))


def iteration(number: int, **metrics: float) -> trainer_pb2.Iteration:
    return trainer_pb2.Iteration(
        iteration=number, policy_version=number + 1, env_steps=10 * (number + 1), metrics=metrics
    )


def expected(number: int, **metrics: float) -> dict[str, float]:
    return {
        "iteration": number,
        "policy_version": number + 1,
        "env_steps": 10 * (number + 1),
        **metrics,
    }


def log_of(folder: Path, done: trainer_pb2.Iteration | None, config: RunConfig) -> MetricsLog:
    log = MetricsLog(folder, CollectorRegistry(), config)
    log.resume(done)
    return log


def test_wandb_holds_iterations_evaluations_and_the_configuration(tmp_path: Path) -> None:
    log = log_of(tmp_path, None, CONFIG)
    log.evaluation({"evaluation_success_rate": 0.25, "evaluation_success_rate/task_3": 0.5}, 0)
    log.write(iteration(0, entropy=5.5))
    log.write(iteration(1, entropy=5.25, **{"success_rate/task_3": 0.125}))
    log.evaluation({"evaluation_success_rate": 0.75}, 20)
    log.close()
    assert rows(tmp_path) == [
        {
            "env_steps": 0,
            "evaluation_success_rate": 0.25,
            "evaluation_success_rate/task_3": 0.5,
        },
        expected(0, entropy=5.5),
        expected(1, entropy=5.25, **{"success_rate/task_3": 0.125}),
        {"env_steps": 20, "evaluation_success_rate": 0.75},
    ]
    (start,) = started(tmp_path)
    assert axes(start) == {
        "env_steps": "",
        "evaluation_success_rate": "env_steps",
        "evaluation_success_rate/task_3": "env_steps",
        "iteration": "",
        "policy_version": "iteration",
        "entropy": "iteration",
        "success_rate/task_3": "iteration",
    }
    begun = run_of(start)
    assert (begun.display_name, begun.project, begun.run_group) == ("mine", "vlarl", "seeds")
    assert list(begun.tags) == ["a", "b"]
    attached = configuration(start)
    assert attached["trainer"]["iterations"] == CONFIG.trainer.iterations
    assert attached["logging"]["wandb"] == "offline"
    assert "10.9.8.7" not in json.dumps(attached), "where the queue is, is nobody's business"


def test_a_resumed_run_goes_on_and_logs_nothing_twice(tmp_path: Path) -> None:
    log = log_of(tmp_path, None, CONFIG)
    for number in range(3):
        log.write(iteration(number, entropy=float(number)))
    log.evaluation({"evaluation_success_rate": 0.5}, 30)
    log.close()
    # Killed between iteration 3's checkpoint and its line.
    resumed = log_of(tmp_path, iteration(3, entropy=3.0), CONFIG)
    resumed.evaluation({"evaluation_success_rate": 0.5}, 30)
    resumed.write(iteration(4, entropy=4.0))
    resumed.close()
    first, second = started(tmp_path)
    assert run_of(first).run_id == run_of(second).run_id
    assert run_of(first).run_id.startswith("mine-")
    assert run_of(second).resume
    evaluation = {"env_steps": 30, "evaluation_success_rate": 0.5}
    trained = [expected(number, entropy=float(number)) for number in range(5)]
    assert rows(tmp_path) == [*trained[:3], evaluation, *trained[3:]]


def test_iterations_done_again_keep_their_first_numbers(tmp_path: Path) -> None:
    log = log_of(tmp_path, None, CONFIG)
    log.write(iteration(0, entropy=0.0))
    log.write(iteration(1, entropy=1.0))
    log.close()
    again = log_of(tmp_path, iteration(0), CONFIG)  # the newest checkpoint was taken away
    again.write(iteration(1, entropy=7.0))
    again.write(iteration(2, entropy=2.0))
    again.close()
    assert [row["entropy"] for row in rows(tmp_path)] == [0.0, 1.0, 2.0]


def test_a_run_that_had_no_wandb_brings_its_iterations(tmp_path: Path) -> None:
    log = log_of(tmp_path, None, RunConfig(name="mine"))
    log.write(iteration(0, entropy=0.0))
    log.close()
    assert not (tmp_path / "wandb").exists()
    log = log_of(tmp_path, iteration(0), CONFIG)
    log.write(iteration(1, entropy=1.0))
    log.close()
    assert rows(tmp_path) == [expected(0, entropy=0.0), expected(1, entropy=1.0)]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.wandb_files import rows
from tests.unit.trainer.test_wandb import CONFIG, iteration, log_of
folder = Path(sys.argv[1])
log = log_of(folder, None, CONFIG)
for number in range(2):
    log.write(iteration(number, entropy=float(number)))
while len(rows(folder)) < 2:
    time.sleep(0.1)
log.write(iteration(2, entropy=2.0))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_whoever_is_killed_logs_nothing_twice(tmp_path: Path) -> None:
    """What was logged in the last second may be lost; what has reached the disk is there once."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    log = log_of(tmp_path, iteration(2), CONFIG)
    log.write(iteration(3, entropy=3.0))
    log.close()
    found = [row["entropy"] for row in rows(tmp_path)]
    assert found in ([0.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0])


class Refusing(BaseHTTPRequestHandler):
    """Says no, and counts."""

    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusing]]:
    """What wandb takes for its server."""
    refusing = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=refusing.serve_forever)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{refusing.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    Refusing.asked = 0
    yield Refusing
    refusing.shutdown()
    thread.join()
    refusing.server_close()


def test_offline_sends_nothing(tmp_path: Path, server: type[Refusing]) -> None:
    log = log_of(tmp_path, None, CONFIG)
    log.write(iteration(0, entropy=1.0))
    log.close()
    assert rows(tmp_path) == [expected(0, entropy=1.0)]
    assert server.asked == 0


def test_a_server_that_refuses_leaves_the_run_offline(
    tmp_path: Path, server: type[Refusing], caplog: pytest.LogCaptureFixture
) -> None:
    online = CONFIG.model_copy(update={"logging": LoggingConfig(wandb="online")})
    log = log_of(tmp_path, None, online)
    log.write(iteration(0, entropy=1.0))
    log.write(iteration(1, entropy=2.0))
    log.close()
    assert server.asked > 0
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warning.startswith("wandb can't be used online (")
    assert warning.endswith(f" stay in {tmp_path / 'wandb'}: `wandb sync` sends them")
    assert [row["entropy"] for row in rows(tmp_path)] == [1.0, 2.0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_a_key_nobody_is_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online = CONFIG.model_copy(update={"logging": LoggingConfig(wandb="online")})
    log = log_of(tmp_path, None, online)
    log.close()
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "No API key configured" in warning


BEREFT = """
import os, signal, sys
from pathlib import Path
from tests.unit.trainer.test_wandb import CONFIG, iteration, log_of
log = log_of(Path(sys.argv[1]), None, CONFIG)
log.write(iteration(0, entropy=0.0))
children = " ".join(one.read_text() for one in Path("/proc/self/task").glob("*/children"))
commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children.split()}
(core,) = [pid for pid, command in commands.items() if "wandb-core" in command]
os.kill(core, signal.SIGKILL)
for number in range(1, 50):
    log.write(iteration(number, entropy=float(number)))
log.close()
"""


@pytest.mark.slow
def test_training_outlives_wandb(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BEREFT, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0
    assert ended.stderr.count("; training goes on without it") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        ("off", "online", "off"),
        ("offline", "online", "offline"),
        ("online", "", "online"),
        ("online", "offline", "offline"),
        ("online", "dryrun", "offline"),
        ("offline", "disabled", "off"),
    ],
)
def test_the_environment_may_make_it_send_less_never_more(
    asked: str, environment: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    assert wandb_mode(LoggingConfig.model_validate({"wandb": asked})) == mode


def test_a_stage_has_an_axis_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        log = StageLog(tmp_path, "training", 2, CONFIG)
        log.write(2, {"loss": 1.0})
        log.write(2, {"success_rate": 0.5})
        log.close()
    assert rows(tmp_path) == [
        {"training/step": 2, "training/loss": 1.0},
        {"training/step": 2, "training/success_rate": 0.5},
    ]


@pytest.mark.slow
def test_the_report_is_attached(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    run._attach_report(CONFIG, folder)
    (start,) = started(folder)
    (files,) = [record.files for record in start if record.HasField("files")]
    assert [file.path for file in files.files] == ["report.html"]
    (copied,) = folder.glob("wandb/offline-run-*/files/report.html")
    assert copied.read_bytes() == (folder / "report.html").read_bytes()
    assert not copied.is_symlink(), "the folder of wandb's run can be carried elsewhere"


def test_no_page_no_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run._attach_report(CONFIG, make_run(tmp_path / "mine", iterations=0, evaluated=()))
    assert "wandb gets no report: " in caplog.text


def test_wandb_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.check_logging(OFFLINE)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    extras.check_logging(LoggingConfig())
    with pytest.raises(extras.ConfigError, match=r"offline.* install 'vlarl\[wandb\]'$"):
        extras.check_logging(OFFLINE)
