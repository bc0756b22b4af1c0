"""`docker compose up` of the CPU profile on a real engine, and what may happen to it afterwards.

It runs where an engine answers (`docker info`), which builds the images first: minutes, and 15 GB.
PYTHON_IMAGE, VALKEY_IMAGE, PROMETHEUS_IMAGE and TORCH_INDEX are docker-compose.yml's own, for an
engine that can't pull. docs/containers.md says how to start one without a network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import ROOT
from tests.unit.deploy.tools import tool

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(5400)]
PROJECT = "vlarl-test"
SERVICES = ("redis", "policy", "env", "reward", "trainer", "prometheus")


class Compose:
    """The stack of docker-compose.yml under another name, with a run of its own."""

    def __init__(self, folder: Path) -> None:
        run = (ROOT / "deploy/compose/run.toml").read_text()
        run = run.replace("iterations = 6", "iterations = 1000")
        run = run.replace("[queue]", "[queue]\nclaim_after_seconds = 8.0")
        (folder / "run.toml").write_text(run)
        self.run = folder / "run.toml"

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "COMPOSE_PROFILES": "cpu", "VLARL_RUN": str(self.run), **variables}

    def __call__(self, *arguments: str, seconds: float = 600, **variables: str) -> str:
        """Runs docker-compose, with further variables; returns what it printed."""
        command = [tool("docker-compose"), "-p", PROJECT, *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment(variables),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if done.returncode:
            logs = ["logs", "--tail", "15"]
            last = subprocess.run(
                [*command[: -len(arguments)], *logs], cwd=ROOT, env=self._environment(variables),
                capture_output=True, text=True,
            )  # fmt: skip
            raise AssertionError(f"{arguments}: {done.stderr[-3000:]}\n{last.stdout[-5000:]}")
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers that run."""
        return self("ps", "-q", "--status", "running", service).split()

    def iterations(self) -> list[dict[str, Any]]:
        """What the trainer has completed."""
        text = self("exec", "-T", "trainer", "sh", "-c", "cat /runs/compose/metrics.jsonl || true")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def further_iteration(self) -> None:
        """Waits until one more iteration than now is complete."""
        wanted = len(self.iterations()) + 1
        wait(lambda: len(self.iterations()) >= wanted)


def docker(*arguments: str) -> str:
    """Runs docker; returns what it printed."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def wait(condition: Callable[[], object], seconds: float = 300) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.fixture
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """A stack whose images are built, and which is gone afterwards."""
    if shutil.which("docker") is None:
        pytest.skip("no docker command")
    info = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if info.returncode:
        pytest.skip(f"no Docker engine answers: {info.stderr.strip().splitlines()[-1]}")
    compose = Compose(tmp_path_factory.mktemp("compose"))
    compose("build", "--quiet", seconds=3600)
    yield compose
    compose("down", "--volumes", "--timeout", "60")
    label = f"label=com.docker.compose.project={PROJECT}"
    assert docker("ps", "--all", "--quiet", "--filter", label) == ""
    assert docker("volume", "ls", "--quiet", "--filter", label) == ""
    assert docker("network", "ls", "--quiet", "--filter", label) == ""


def test_the_stack_comes_up_trains_and_survives(compose: Compose) -> None:
    # A checkpoint that isn't there: a sentence in the log of a container that ends, and no other.
    run = compose.run.read_text()
    compose.run.write_text(run.replace("/runs/tiny", "/checkpoints/absent"))
    with pytest.raises(AssertionError, match='"prepare" didn\'t complete successfully: exit 1'):
        compose("up", "--detach", *SERVICES)
    assert "error: there is no checkpoint folder /checkpoints/absent" in compose("logs", "prepare")
    assert not any(compose.containers(service) for service in ("policy", "env", "trainer"))
    compose.run.write_text(run)

    compose("up", "--detach", "--wait", "--wait-timeout", "500", *SERVICES)
    wait(lambda: compose.iterations())
    for service in ("secrets", "prepare"):
        (state,) = json.loads(docker("inspect", compose("ps", "-aq", service).strip()))
        assert (state["State"]["Status"], state["State"]["ExitCode"]) == ("exited", 0)
    token = compose("exec", "-T", "policy", "cat", "/run/secrets/client-token")
    for service in SERVICES:
        (container,) = compose.containers(service)
        (state,) = json.loads(docker("inspect", container))
        assert state["State"]["Health"]["Status"] == "healthy"
        assert state["HostConfig"]["ReadonlyRootfs"]
        assert state["HostConfig"]["CapDrop"] == ["ALL"]
    for service in ("policy", "env", "reward", "trainer"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "10001"
        with pytest.raises(AssertionError, match="Read-only file system"):
            compose("exec", "-T", service, "touch", "/anything")

    (env,) = compose.containers("env")
    # From outside, `docker kill` would count as an operator's wish to have it stopped.
    compose("exec", "-T", "env", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
    wait(lambda: json.loads(docker("inspect", env))[0]["RestartCount"] == 1)
    compose.further_iteration()

    # The run goes on under a trainer that is at work, and no secret is made anew.
    compose("up", "--detach", "--wait", "--no-recreate", "--scale", "env=3", *SERVICES)
    assert compose("exec", "-T", "policy", "cat", "/run/secrets/client-token") == token
    several = compose.containers("env")
    assert len(several) == 3
    compose.further_iteration()

    network = f"{PROJECT}_stack"
    docker("network", "disconnect", network, several[-1])
    compose.further_iteration()
    docker("network", "connect", "--alias", "env", network, several[-1])
    compose.further_iteration()

    compose("restart", "trainer")
    compose.further_iteration()

    lines = compose.iterations()
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    assert all(line["episodes"] == 6 for line in lines), "episodes were lost"
    assert max(line["logprob_gap"] for line in lines) < 1e-4
    scraped = compose(
        "exec", "-T", "trainer", "python", "-c",
        "import urllib.request as r;"
        "print(r.urlopen('http://prometheus:9090/api/v1/query?query=up').read().decode())",
    )  # fmt: skip
    up = {
        (one["metric"]["service"], one["value"][1]) for one in json.loads(scraped)["data"]["result"]
    }
    assert {(name, "1") for name in ("policy", "env", "reward", "trainer")} <= up
