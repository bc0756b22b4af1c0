"""What Kubernetes does to a run, done with processes: env servers 1 -> 3 -> 1 and policy replicas
1 -> 2 -> 1 behind one DNS name, under a client's load and while weights are updated.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.stack import ROOT
from vlarl.launch.supervisor import free_address, simulator_python
from vlarl.launch.valkey import valkey_command
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.queue.rollout_queue import scored_stream
from vlarl.rpc.channel import open_channel, open_sync_channel, server_health
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "policy.vlarl.test"
EPISODES = 4
OWN_NAMES = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']
"""Runs a command for which /etc/hosts is another file."""


class Cluster:
    """Servers of one run as processes of this machine, one name for all policy replicas."""

    def __init__(
        self, folder: Path, checkpoint: Path, started: list[subprocess.Popen[bytes]]
    ) -> None:
        self.folder = folder
        self.started = started
        self.hosts = folder / "hosts"
        self.trainer = free_address()
        self.port = free_address().split(":")[1]
        self.metrics: dict[str, str] = {}
        self.socket = folder / "queue.sock"
        self.config = folder / "run.toml"
        self.config.write_text(f"""
            name = "scaling"
            [queue]
            url = "unix://{self.socket}"
            claim_after_seconds = 5.0
            [tasks]
            suite = "libero_spatial"
            indices = [0]
            max_actions = 3
            [policy]
            checkpoint = "{checkpoint}"
            addresses = "dns:///{NAME}:{self.port}"
            trainer_address = "{self.trainer}"
            catch_up_seconds = 3.0
            cpu_threads = 1
            kv_cache_mib = 64
            max_batch = 8
            [env]
            processes = 1
            profile = "fast"
            render_size = 84
            [trainer]
            address = "{self.trainer}"
            iterations = 1000
            algorithm = "grpo"
            episodes_per_iteration = {EPISODES}
            [trainer.grpo]
            group_size = 2
            keep_between = [0, 1]
            # Nothing is solved, so this alone makes new weights.
            entropy_coefficient = 0.01
            mini_batch = 6
            micro_batch = 6
            """)

    def name(self, replicas: list[int]) -> None:
        """What the policies' name stands for from now on. Written in place: a bind mount shows
        the file it was made of.
        """
        lines = [f"127.0.0.{one} {NAME}" for one in replicas]
        with self.hosts.open("r+" if self.hosts.exists() else "w") as hosts:
            hosts.write("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
            hosts.truncate()

    def run(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a process that sees the name; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*OWN_NAMES, str(self.hosts), *command],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def serve(self, kind: str, name: str, listen: str = "") -> subprocess.Popen[bytes]:
        """Starts a server; `server_health` of its address says when it serves."""
        self.metrics[name] = free_address()
        python = str(simulator_python()) if kind == "env" else sys.executable
        options = ["--config", str(self.config), "--listen", listen or free_address()]
        options += ["--metrics-listen", self.metrics[name], "--drain-seconds", "20"]
        return self.run(name, python, "-m", "vlarl", "serve", kind, *options)

    def policy(self, number: int) -> subprocess.Popen[bytes]:
        """Starts a replica."""
        return self.serve("policy", f"policy-{number}", self.replica(number))

    def until_serving(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """Waits for a replica that has been started."""
        self.wait(lambda: server_health(self.replica(number)) == "SERVING", process)

    def replica(self, number: int) -> str:
        """A replica's own address."""
        return f"127.0.0.{number}:{self.port}"

    def version(self, number: int) -> int:
        """What a replica serves."""
        with open_sync_channel(self.replica(number)) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            return stub.GetPolicy(policy_pb2.GetPolicyRequest()).policy_version

    def metric(self, server: str, name: str) -> float:
        """A counter or gauge, all its labels' values together; 0 before the server listens."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics[server]}/metrics") as answer:
                families = text_string_to_metric_families(answer.read().decode())
        except OSError:
            return 0.0
        return sum(s.value for family in families for s in family.samples if s.name == name)

    def iterations(self) -> list[dict[str, Any]]:
        """The completed ones."""
        file = self.folder / "run" / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def further_iterations(self, count: int) -> None:
        """Waits for so many more."""
        wanted = len(self.iterations()) + count
        self.wait(lambda: len(self.iterations()) >= wanted)

    def wait(
        self, condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Waits until it holds, while everything (or the process) lives.

        Raises:
            AssertionError: a process ended, or four minutes passed; with all last words.
        """
        deadline = time.monotonic() + 240
        while not condition():
            late = time.monotonic() > deadline
            if late or any(one.poll() for one in [process or self.started[-1]]):
                logs = sorted(self.folder.glob("*.log"))
                raise AssertionError(
                    "\n".join(f"--- {one.name}\n{one.read_text()[-1500:]}" for one in logs)
                )
            time.sleep(0.1)

    async def paused(self) -> str:
        """Stops the trainer before its next iteration; returns the run's id."""
        async with open_channel(self.trainer) as channel, asyncio.timeout(240):
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            await stub.Pause(trainer_pb2.PauseRequest())
            while True:
                status = await stub.GetStatus(trainer_pb2.GetStatusRequest())
                if status.state == trainer_pb2.RUN_STATE_PAUSED:
                    return str(status.run_id)
                await asyncio.sleep(0.1)

    async def resume(self) -> None:
        """Lets the trainer go on."""
        async with open_channel(self.trainer) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            await stub.Resume(trainer_pb2.ResumeRequest())

    def trajectories_added(self, run_id: str) -> int:
        """How many scored trajectories the queue has ever received for this run."""
        import redis

        with redis.Redis(unix_socket_path=str(self.socket)) as queue:
            return int(queue.xinfo_stream(scored_stream(run_id))["entries-added"])


@pytest.fixture
def cluster(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    started: list[subprocess.Popen[bytes]],
) -> Cluster:
    """One with a queue, nothing else."""
    folder = tmp_path_factory.mktemp("scaling")
    cluster = Cluster(folder, checkpoint, started)
    cluster.name([1])
    trial = subprocess.run([*OWN_NAMES, str(cluster.hosts), "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no mount namespace here, so no DNS name of our own: {trial.stderr.strip()}")
    cluster.run("queue", *valkey_command(folder / "queue", cluster.socket))
    return cluster


def end(process: subprocess.Popen[bytes]) -> None:
    """As Kubernetes does it; a server that drains ends well."""
    process.terminate()
    assert process.wait(90) == 0


def test_servers_come_and_go_and_nothing_is_lost(cluster: Cluster) -> None:
    policy = cluster.policy(1)
    env = cluster.serve("env", "env-1")
    cluster.serve("reward", "reward")
    cluster.until_serving(1, policy)
    run = ["--run-dir", str(cluster.folder / "run")]
    train = [sys.executable, "-m", "vlarl", "train", str(cluster.config), *run]
    load = cluster.run(
        "load", sys.executable, str(ROOT / "tests/e2e/policy_load_program.py"),
        f"dns:///{NAME}:{cluster.port}", "2",
    )  # fmt: skip
    trainer = cluster.run("trainer", *train)
    cluster.further_iterations(1)

    # 1 -> 2 policies, 1 -> 3 env servers, all of which do some of the work.
    replica = cluster.policy(2)
    others = [cluster.serve("env", f"env-{number}") for number in (2, 3)]
    cluster.until_serving(2, replica)
    cluster.name([1, 2])
    finished = "vlarl_env_episodes_total"
    cluster.wait(lambda: all(cluster.metric(f"env-{n}", finished) for n in (2, 3)))
    cluster.wait(lambda: cluster.metric("policy-2", "vlarl_policy_actions_total"))
    cluster.further_iterations(2)
    asyncio.run(cluster.paused())
    version = cluster.iterations()[-1]["policy_version"] + 1
    assert [cluster.version(number) for number in (1, 2)] == [version] * 2
    asyncio.run(cluster.resume())

    # 2 -> 1 and 3 -> 1, in the middle of whatever they do. A node that is lost says no farewell:
    # members of its groups are played by others.
    lost, drained = others
    lost.kill()
    end(drained)
    cluster.name([1])
    end(replica)
    cluster.further_iterations(2)

    run_id = asyncio.run(cluster.paused())
    lines = cluster.iterations()
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    assert all(line["episodes"] == EPISODES for line in lines), "episodes were lost"
    assert sum(line["missing_episodes"] for line in lines) == 0
    assert max(line["logprob_gap"] for line in lines) < 1e-4
    again = (cluster.folder / "trainer.log").read_text().count("is ordered again")
    assert cluster.trajectories_added(run_id) == EPISODES * len(lines) + again, "some came twice"
    assert cluster.version(1) == lines[-1]["policy_version"] + 1
    end(load)
    said = json.loads((cluster.folder / "load.log").read_text().splitlines()[-1])
    assert said["failures"] == []
    assert len(said["versions"]) >= len(lines) - 1, "the load was there for every update"
    trainer.terminate()
    trainer.wait(60)
    end(env)
    print(
        f"{len(lines)} iterations, {again} episodes again, actions by version: {said['versions']}"
    )
