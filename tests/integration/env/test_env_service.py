"""The whole server, as clients of any language see it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from PIL import Image

from tests.integration.rpc.programs import run_program
from vlarl.config import ChannelConfig, EnvConfig, RunConfig, ServerConfig, dump_toml
from vlarl.config.libero import LIBERO_STEP_LIMITS
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.launch.supervisor import free_address
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.channel import open_channel, wait_until_serving
from vlarl.rpc.errors import violations
from vlarl.rpc.interception import Context
from vlarl.rpc.server import RpcServer

pytestmark = pytest.mark.sim

TOWARDS_THE_POINT = [1.0, 0.0, -0.7, 0.0, 0.0, 0.0, 1.0]


class Server:
    """A served env in a process of its own."""

    def __init__(self, folder: Path, **changed: object) -> None:
        fields = {"profile": "fast", "render_size": 64, "action_repeat": 4, **changed}
        fields = {"processes": 1, "step_timeout_seconds": 5, **fields}
        config = RunConfig(env=EnvConfig.model_validate(fields))
        (folder / "run.toml").write_text(dump_toml(config))
        self.folder = folder
        self.stub: env_pb2_grpc.EnvServiceAsyncStub
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        self.metrics = free_address()
        file = self.folder / "address"
        file.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vlarl", "serve", "env", "--no-queue"),
                *("--config", str(self.folder / "run.toml"), "--listen", "127.0.0.1:0"),
                *("--address-file", str(file), "--drain-seconds", "1"),
                *("--metrics-listen", self.metrics),
            ]
        )
        deadline = time.monotonic() + 60
        while not file.exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.address = file.read_text().strip()

    async def until_whole(self) -> None:
        """Waits until no simulator is lent out or being replaced."""
        async with asyncio.timeout(60):
            while True:
                text = await asyncio.to_thread(scrape, self.metrics)
                if "vlarl_env_active_envs 0.0" in text and "vlarl_env_simulators 1.0" in text:
                    return
                await asyncio.sleep(0.05)

    def end(self) -> None:
        """Kills it where it lives."""
        self.process.kill()
        self.process.wait()

    def simulators(self) -> list[int]:
        pids = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid:
                    pids.append(int(entry.name))
        return pids


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests; whoever finds it ended starts it again."""
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.end()


@pytest.fixture
async def server(lasting: Server) -> AsyncIterator[Server]:
    if lasting.process.poll() is not None:
        lasting.start()
    async with open_channel(lasting.address, ChannelConfig(timeout_seconds=60)) as channel:
        await wait_until_serving(channel, "vlarl.env.v1.EnvService", 60)
        await lasting.until_whole()
        lasting.stub = env_pb2_grpc.EnvServiceStub(channel)
        yield lasting


def reset(**changed: object) -> env_pb2.InteractRequest:
    task = rollout_pb2.Task(suite="reach", index=0)
    fields: dict[str, object] = {"task": task, "placement_seed": 3}
    return env_pb2.InteractRequest(reset=env_pb2.ResetEpisode(**{**fields, **changed}))


def step(
    action: list[float] = TOWARDS_THE_POINT, repeat: int = 0, horizon: int = 0
) -> env_pb2.InteractRequest:
    command = env_pb2.StepEpisode(action=action, repeat=repeat, horizon=horizon)
    return env_pb2.InteractRequest(step=command)


async def refusal(
    server: Server, *requests: env_pb2.InteractRequest
) -> tuple[grpc.StatusCode, str, list[str]]:
    """Status, text and wrong fields with which the last request is refused."""
    call = server.stub.Interact()
    for request in requests[:-1]:
        await call.write(request)
        await call.read()
    await call.write(requests[-1])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    fields = [field for field, _ in violations(caught.value)]
    return caught.value.code(), caught.value.details() or "", fields


async def test_an_episode_over_the_wire(server: Server) -> None:
    tasks = (await server.stub.ListTasks(env_pb2.ListTasksRequest())).tasks
    listed = [(task.task.suite, task.task.index) for task in tasks]
    assert len(listed) == len(set(listed))
    published = [suite for suite, _ in listed if suite in LIBERO_STEP_LIMITS]
    assert len(published) == 130
    assert sum(suite.startswith("libero_") for suite, _ in listed) == 130 + 4 * 4 * 10
    (only,) = (await server.stub.ListTasks(env_pb2.ListTasksRequest(suite="reach"))).tasks
    call = server.stub.Interact()
    await call.write(reset(cameras=["agentview", "robot0_eye_in_hand"]))
    seen = await call.read()
    assert [frame.camera for frame in seen.frames] == ["agentview", "robot0_eye_in_hand"]
    assert seen.instruction == only.instruction
    await call.write(step(repeat=2))
    seen = await call.read()
    assert (seen.control_steps, seen.executed) == (2, 1)
    await call.write(step(TOWARDS_THE_POINT * 3, repeat=1, horizon=3))
    seen = await call.read()
    assert (seen.control_steps, seen.executed) == (5, 3)
    assert [frame.camera for frame in seen.frames] == ["agentview", "robot0_eye_in_hand"]
    assert len(seen.robot_state.proprio) == 8
    while not seen.terminated:
        await call.write(step())
        seen = await call.read()
    assert seen.reward == 1.0
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


class Pointer(policy_pb2_grpc.PolicyServiceServicer):
    """A policy that always knows where the point is."""

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: Context
    ) -> policy_pb2.GetPolicyResponse:
        return policy_pb2.GetPolicyResponse(cameras=["agentview"])

    async def PredictActions(
        self, request: policy_pb2.PredictActionsRequest, context: Context
    ) -> policy_pb2.PredictActionsResponse:
        (observation,) = request.observations
        assert Image.open(io.BytesIO(observation.image)).size == (64, 64)
        assert observation.instruction == "reach the point above the bowl"
        action = policy_pb2.Action(values=TOWARDS_THE_POINT, policy_version=4)
        return policy_pb2.PredictActionsResponse(actions=[action])


async def test_the_example_rolls_out_and_films(server: Server, tmp_path: Path) -> None:
    film = tmp_path / "episode.gif"
    script = Path(__file__).parents[3] / "examples/rollout.py"
    policy = RpcServer(ServerConfig(), ["vlarl.policy.v1.PolicyService"])
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(Pointer(), policy.grpc)
    address = await policy.start()
    try:
        command = (sys.executable, script, "--policy", address, "--env", server.address)
        options = ("--suite", "reach", "--placement-seed", "3", "--film", film)
        code, output, errors = await run_program(*command, *options)
    finally:
        await policy.stop()
    assert (code, errors) == (0, "")
    instruction, ended = output.splitlines()
    assert instruction == "reach the point above the bowl"
    match = re.match(r"success after (\d+) actions, (\d+) control steps; policy version 4, ", ended)
    assert match is not None
    actions, control_steps = map(int, match.groups())
    assert 4 * (actions - 1) < control_steps <= 4 * actions
    with Image.open(film) as shown:
        # A last frame like the one before it would be merged into it; the hand moves on.
        assert (shown.size, shown.n_frames) == ((64, 64), actions + 1)


async def test_the_door_refuses_what_makes_no_sense(server: Server) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    task = rollout_pb2.Task
    for requests, field in [
        ([step()], "reset"),
        ([reset(task=task(suite="nowhere"))], "reset.task"),
        ([reset(placement_seed=None)], "reset.placement"),
        ([reset(task=task(suite="libero_goal"), init_state=50)], "reset.init_state"),
        ([reset(cameras=["agentview", "agentview"])], "reset.cameras"),
        ([reset(max_control_steps=10**6)], "reset.max_control_steps"),
        ([reset(cameras=["behind"])], "command"),
        ([reset(), reset()], "step"),
        ([reset(), step([0.0] * 6)], "step.action"),
        ([reset(), step([float("inf")] * 7)], "step.action"),
        ([reset(), step(repeat=10**6)], "step.repeat"),
        ([reset(), step(TOWARDS_THE_POINT * 2)], "step.action"),
        ([reset(), step(horizon=2)], "step.action"),
        ([reset(), step(TOWARDS_THE_POINT * 201, horizon=201)], "step.horizon"),
        ([reset(), step(TOWARDS_THE_POINT * 51, horizon=51)], "step.horizon"),
        ([reset(), step(TOWARDS_THE_POINT * 3, horizon=3, repeat=100)], "step.horizon"),
    ]:
        code, text, fields = await refusal(server, *requests)
        assert (code, fields) == (invalid, [field]), text
    with pytest.raises(grpc.aio.AioRpcError, match="unknown suite 'nowhere'"):
        await server.stub.ListTasks(env_pb2.ListTasksRequest(suite="nowhere"))
    code, text, _ = await refusal(server, reset(max_control_steps=1), step(), step())
    assert (code, text) == (grpc.StatusCode.FAILED_PRECONDITION, "the episode has ended")


async def test_one_simulator_is_lent_to_one_client(server: Server) -> None:
    call = server.stub.Interact()
    await call.write(reset())
    await call.read()
    code, text, _ = await refusal(server, reset())
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "are lent out" in text
    call.cancel()
    async with asyncio.timeout(10):
        while True:
            another = server.stub.Interact()
            await another.write(reset())
            with contextlib.suppress(grpc.aio.AioRpcError):
                assert (await another.read()).control_steps == 0
                break


async def test_a_lost_simulator_is_named_and_replaced(server: Server) -> None:
    (pid,) = server.simulators()
    call = server.stub.Interact()
    await call.write(reset())
    await call.read()
    os.kill(pid, signal.SIGKILL)
    await call.write(step())
    with pytest.raises(grpc.aio.AioRpcError, match="killed by SIGKILL") as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    another = server.stub.Interact()
    await another.write(reset())
    assert (await another.read()).control_steps == 0
    assert server.simulators() != [pid]


async def test_sigterm_ends_server_and_simulators(server: Server) -> None:
    call = server.stub.Interact()
    await call.write(reset())
    await call.read()
    pids = server.simulators()
    assert len(pids) == 1
    server.process.terminate()
    assert await asyncio.to_thread(server.process.wait, 15) == 0
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        return str(answer.read().decode())


async def test_metrics_are_served(tmp_path: Path) -> None:
    port_file = tmp_path / "metrics"
    from vlarl_env.server import serve

    run = RunConfig(env=EnvConfig(processes=1, profile="fast", render_size=64))
    config = ServerConfig(metrics_listen="127.0.0.1:0", metrics_address_file=port_file)
    serving = asyncio.create_task(serve(run, config, with_queue=False))
    async with asyncio.timeout(60):
        while True:
            assert not serving.done(), serving.exception()
            await asyncio.sleep(0.05)
            if not port_file.exists():
                continue
            text = await asyncio.to_thread(scrape, port_file.read_text().strip())
            if "vlarl_env_simulators 1.0" in text:
                break
    assert 'vlarl_env_simulator_restarts_total{cause="hung"} 0.0' in text
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
