"""The worker between a real queue, real simulators and a policy server that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from tests.conftest import Valkey
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.config import EnvConfig, QueueConfig
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.metrics import EnvMetrics
from vlarl_env.pool import SimulatorPool
from vlarl_env.rollout import action_seed
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_env.worker import EnvWorker

pytestmark = [pytest.mark.sim, pytest.mark.asyncio(loop_scope="module")]

Context = grpc.aio.ServicerContext[Any, Any]

TOWARDS_THE_POINT = [1.0, 0.0, -0.7, 0.0, 0.0, 0.0, 1.0]
STAY = [0.0] * 6 + [1.0]


class ScriptedPolicy(policy_pb2_grpc.PolicyServiceServicer):
    """Answers one action for ever; `before` may fail or delay a request."""

    def __init__(self) -> None:
        self.values = TOWARDS_THE_POINT
        self.requests: list[policy_pb2.PredictActionsRequest] = []
        self.before: Callable[[Context], Awaitable[None]] | None = None
        self.described = policy_pb2.GetPolicyResponse()

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: Context
    ) -> policy_pb2.GetPolicyResponse:
        return self.described

    async def PredictActions(
        self, request: policy_pb2.PredictActionsRequest, context: Context
    ) -> policy_pb2.PredictActionsResponse:
        self.requests.append(request)
        if self.before is not None:
            await self.before(context)
        version, horizon = len(self.requests), max(1, self.described.chunk)
        action = policy_pb2.Action(
            token_ids=[31999 - version] * 7 * horizon,
            logprobs=[-0.5] * 7 * horizon,
            values=self.values * horizon,
            policy_version=version,
            horizon=self.described.chunk,
        )
        return policy_pb2.PredictActionsResponse(actions=[action])


@dataclass(frozen=True)
class Simulators:
    """What all tests share."""

    config: EnvConfig
    pool: SimulatorPool
    registry: CollectorRegistry

    def control_steps(self) -> float:
        """How many were ever run."""
        return self.registry.get_sample_value("vlarl_env_control_steps_total") or 0.0

    async def whole(self) -> None:
        """Waits until none is being replaced."""
        async with asyncio.timeout(60):
            while len(self.pool.pids) < self.config.processes:
                await asyncio.sleep(0.05)


class Bench:
    """Everything that a worker needs, and the worker."""

    def __init__(self, queue: RolloutQueue, policy: ScriptedPolicy, simulators: Simulators) -> None:
        self.queue = queue
        self.policy = policy
        self.pool = simulators.pool
        self.registry = CollectorRegistry()
        self.worker: EnvWorker

    async def trajectory(self) -> rollout_pb2.Trajectory:
        async with asyncio.timeout(60):
            while True:
                if found := await self.queue.next_trajectories("tester", 1, 1.0):
                    return found[0].message

    async def waiting(self) -> int:
        """Episodes that no worker holds."""
        states = {state.stream: state for state in await self.queue.states()}
        return states["episodes"].length - states["episodes"].pending


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def simulators(crowded: Path) -> AsyncIterator[Simulators]:
    """One simulator, replaced where a test has killed it."""
    config = EnvConfig(
        bddl_directories={"crowded": crowded},
        processes=1,
        profile="fast",
        render_size=64,
        action_repeat=4,
        policy_patience_seconds=1.0,
        simulator_restarts=1,
    )
    registry = CollectorRegistry()
    async with SimulatorPool(config, [], EnvMetrics(registry)) as pool:
        yield Simulators(config, pool, registry)


@pytest_asyncio.fixture(loop_scope="module")
async def bench(valkey: Valkey, simulators: Simulators) -> AsyncIterator[Bench]:
    policy = ScriptedPolicy()
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await simulators.whole()
    config = simulators.config
    async with (
        RolloutQueue(QueueConfig(url=valkey.url)) as queue,
        AsyncPolicyClient(f"127.0.0.1:{port}", timeout_seconds=5) as client,
    ):
        opened = Bench(queue, policy, simulators)
        catalog, metrics = TaskCatalog(config.bddl_directories), EnvMetrics(opened.registry)
        opened.worker = EnvWorker(
            queue, simulators.pool, client, catalog, config, metrics, "worker-1"
        )
        running = asyncio.create_task(opened.worker.run())
        yield opened
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    await server.stop(0)


def order(episode: str = "e1", **changed: object) -> rollout_pb2.EpisodeSpec:
    fields: dict[str, Any] = {
        "episode_id": episode,
        "run_id": "run",
        "task": rollout_pb2.Task(suite="reach", index=0),
        "placement_seed": 3,
        "temperature": 1.5,
        "sampling_seed": 99,
        "unnorm_key": "libero",
        "record_frames": True,
    }
    return rollout_pb2.EpisodeSpec(**{**fields, **changed})


async def test_an_order_becomes_a_trajectory(bench: Bench, simulators: Simulators) -> None:
    spec, before = order(), simulators.control_steps()
    await bench.queue.issue([spec])
    trajectory = await bench.trajectory()
    assert trajectory.spec == spec
    assert trajectory.instruction == "reach the point above the bowl"
    assert trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
    assert trajectory.worker == "worker-1"
    assert 0 < trajectory.policy_seconds < trajectory.seconds
    assert [step.env_reward for step in trajectory.steps][-2:] == [0.0, 1.0]
    for number, (step, request) in enumerate(
        zip(trajectory.steps, bench.policy.requests, strict=True)
    ):
        (observation,) = request.observations
        assert step.image == observation.image
        assert step.image.startswith(b"\xff\xd8")
        assert observation.seed == action_seed(99, number)
        assert observation.instruction == trajectory.instruction
        assert request.temperature == 1.5
        assert request.unnorm_key == "libero"
        assert list(step.action.token_ids) == [31998 - number] * 7
        assert list(step.action.logprobs) == [-0.5] * 7
        assert step.action.policy_version == number + 1
        assert len(step.robot_state.position) == 3
    assert trajectory.final_image.startswith(b"\xff\xd8")
    assert trajectory.final_image != trajectory.steps[-1].image
    executed = [step.control_steps for step in trajectory.steps]
    assert executed[:-1] == [4] * (len(executed) - 1)
    assert 1 <= executed[-1] <= 4
    assert sum(executed) == simulators.control_steps() - before
    ended = {"driver": "worker", "outcome": "success"}
    assert bench.registry.get_sample_value("vlarl_env_episodes_total", ended) == 1


CHUNKED = policy_pb2.GetPolicyResponse(
    chunk=8, cameras=["agentview", "robot0_eye_in_hand"], proprio=8
)


async def test_a_policy_is_shown_what_it_reads_and_its_chunks_are_executed(
    bench: Bench, simulators: Simulators
) -> None:
    before = simulators.control_steps()
    bench.policy.described = CHUNKED
    await bench.queue.issue([order()])
    trajectory = await bench.trajectory()
    assert trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
    assert list(trajectory.cameras) == list(CHUNKED.cameras)
    for step, request in zip(trajectory.steps, bench.policy.requests, strict=True):
        (observation,) = request.observations
        assert [image.camera for image in observation.images] == ["robot0_eye_in_hand"]
        assert list(step.images) == [image.image for image in observation.images]
        assert step.images[0] != step.image == observation.image
        assert list(step.robot_state.proprio) == list(observation.proprio)
        assert list(observation.proprio[:3]) == list(step.robot_state.position)
        assert len(step.action.token_ids) == 56
    assert trajectory.final_images[0] not in (trajectory.final_image, step.images[0])
    assert len(trajectory.final_robot_state.proprio) == 8
    *whole, last = trajectory.steps
    assert all((step.executed, step.control_steps) == (8, 32) for step in whole)
    assert 4 * (last.executed - 1) < last.control_steps <= 4 * last.executed
    chunked_steps = simulators.control_steps() - before
    # The same actions, one an answer, take the same way.
    bench.policy.described = policy_pb2.GetPolicyResponse()
    bench.worker._episodes._needs = None
    await bench.queue.issue([order("single")])
    single = await bench.trajectory()
    assert sum(step.control_steps for step in single.steps) == chunked_steps
    assert sum(step.executed for step in trajectory.steps) == len(single.steps)
    assert single.final_image == trajectory.final_image
    assert single.final_robot_state == trajectory.final_robot_state


async def test_a_policy_that_can_not_be_shown_what_it_reads_gets_dead_letters(bench: Bench) -> None:
    bench.policy.described = policy_pb2.GetPolicyResponse(proprio=14)
    await bench.queue.issue([order("arm")])
    async with asyncio.timeout(60):
        while not (letters := await bench.queue.dead_letters()):
            await asyncio.sleep(0.05)
    assert letters[0].cause.startswith("the policy reads 14 numbers of proprioception")
    bench.policy.described = policy_pb2.GetPolicyResponse(cameras=["behind"])
    bench.worker._episodes._needs = None
    await bench.queue.issue([order("camera")])
    async with asyncio.timeout(60):
        while len(letters := await bench.queue.dead_letters()) < 2:
            await asyncio.sleep(0.05)
    causes = {letter.spec.episode_id: letter.cause for letter in letters}
    assert "unknown camera 'behind'; the scene has agentview" in causes["camera"]


async def test_the_action_limit_cuts_and_frames_may_be_left_out(bench: Bench) -> None:
    bench.policy.values = STAY
    await bench.queue.issue([order(max_actions=2, record_frames=False)])
    trajectory = await bench.trajectory()
    assert trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT
    assert [step.control_steps for step in trajectory.steps] == [4, 4]
    assert all(step.image == b"" for step in trajectory.steps)
    assert trajectory.final_image == b""


async def test_a_lost_simulator_costs_a_second_try_only(bench: Bench) -> None:
    async def kill_once(context: Context) -> None:
        bench.policy.before = None
        os.kill(bench.pool.pids[0], signal.SIGKILL)

    bench.policy.before = kill_once
    await bench.queue.issue([order()])
    trajectory = await bench.trajectory()
    assert trajectory.simulator_restarts == 1
    assert trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
    # Run again from its start, with the seeds of the first time.
    seeds = [request.observations[0].seed for request in bench.policy.requests]
    assert seeds[:2] == [action_seed(99, 0)] * 2
    assert len(trajectory.steps) == len(seeds) - 1


@pytest.mark.slow
async def test_an_episode_that_always_loses_its_simulator_ends_as_a_dead_letter(
    bench: Bench,
) -> None:
    async def kill(context: Context) -> None:
        os.kill(bench.pool.pids[0], signal.SIGKILL)

    bench.policy.before = kill
    await bench.queue.issue([order()])
    async with asyncio.timeout(120):
        while not (letters := await bench.queue.dead_letters()):
            await asyncio.sleep(0.1)
    assert letters[0].stage == "env"
    assert letters[0].cause == (
        "the simulator died 2 times, at last: the simulator process was killed by SIGKILL"
    )


async def test_a_policy_that_is_away_loses_no_episode(bench: Bench) -> None:
    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.INTERNAL, "out of memory")

    bench.policy.before = refuse
    await bench.queue.issue([order()])
    released = {"driver": "worker", "outcome": "released"}
    async with asyncio.timeout(60):
        while not bench.registry.get_sample_value("vlarl_env_episodes_total", released):
            await asyncio.sleep(0.05)
    assert await bench.queue.dead_letters() == []
    bench.policy.before = None
    assert (await bench.trajectory()).outcome == rollout_pb2.OUTCOME_SUCCESS


SENSELESS: dict[str, tuple[dict[str, Any], str]] = {
    "suite": ({"task": rollout_pb2.Task(suite="libero_11")}, "unknown suite 'libero_11'"),
    "task": ({"task": rollout_pb2.Task(suite="reach", index=9)}, "no number 9"),
    "placement": ({"placement_seed": None}, "neither init_state nor placement_seed"),
    "state": ({"placement_seed": None, "init_state": 100}, "100 official initial states"),
    "negative": ({"temperature": -1.0}, "temperature -1.0 is below 0"),
    "nan": ({"temperature": float("nan")}, "temperature nan is below 0"),
}


async def test_an_order_that_makes_no_sense_is_a_dead_letter_at_once(bench: Bench) -> None:
    orders = [order(name, **changed) for name, (changed, _) in SENSELESS.items()]
    await bench.queue.issue([*orders, order("good")])
    assert (await bench.trajectory()).spec.episode_id == "good"
    causes = {letter.spec.episode_id: letter.cause for letter in await bench.queue.dead_letters()}
    assert causes.keys() == SENSELESS.keys()
    for name, (_, cause) in SENSELESS.items():
        assert cause in causes[name], name


async def test_a_scene_without_room_is_tried_once_and_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    process = bench.pool.pids
    crowded = rollout_pb2.Task(suite="crowded", index=0)
    await bench.queue.issue([order(f"bad-{number}", task=crowded) for number in range(4)])
    await bench.queue.issue([order("good")])
    assert (await bench.trajectory()).spec.episode_id == "good"
    letters = await bench.queue.dead_letters()
    assert len(letters) == 4
    for letter in letters:
        assert "crowd.bddl: there is no room for all objects" in letter.cause
    assert bench.pool.pids == process, "the simulator was replaced"
    warned = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    assert len(warned) == 1


async def test_what_the_policy_refuses_is_a_dead_letter(bench: Bench) -> None:
    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unknown unnorm_key 'libero'")

    bench.policy.before = refuse
    await bench.queue.issue([order()])
    async with asyncio.timeout(60):
        while not (letters := await bench.queue.dead_letters()):
            await asyncio.sleep(0.05)
    assert "unknown unnorm_key 'libero'" in letters[0].cause


async def test_a_worker_goes_on_where_the_queue_was_emptied(bench: Bench) -> None:
    """In the midst of an episode, whose end nobody waits for any more."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(context: Context) -> None:
        arrived.set()
        await go_on.wait()

    bench.policy.before = wait
    await bench.queue.issue([order("lost")])
    async with asyncio.timeout(60):
        await arrived.wait()
    await bench.queue._redis.flushall()
    bench.policy.before = None
    go_on.set()
    await bench.queue.issue([order("new")])
    assert (await bench.trajectory()).spec.episode_id == "new"


async def test_a_drain_hands_back_what_does_not_end(bench: Bench) -> None:
    arrived = asyncio.Event()

    async def never(context: Context) -> None:
        arrived.set()
        await asyncio.Event().wait()

    bench.policy.before = never
    await bench.queue.issue([order()])
    async with asyncio.timeout(60):
        await arrived.wait()
    assert await bench.waiting() == 0
    await bench.worker.drain(0.1)
    assert await bench.waiting() == 1
    delivery = await bench.queue.next_episode("another", 1.0)
    assert delivery is not None
    assert delivery.deliveries == 1, "a drained episode has used none of its tries up"


async def test_a_drain_waits_for_no_policy_that_is_away(bench: Bench) -> None:
    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.INTERNAL, "the engine died")

    patient = bench.worker._config.model_copy(update={"policy_patience_seconds": 10**6})
    bench.worker._episodes._config = patient
    bench.policy.before = refuse
    await bench.queue.issue([order()])
    async with asyncio.timeout(60):
        while len(bench.policy.requests) < 2:
            await asyncio.sleep(0.01)
        await bench.worker.drain(10**6)
    assert await bench.waiting() == 1
    assert await bench.queue.dead_letters() == []


async def test_a_drain_lets_short_episodes_end(bench: Bench) -> None:
    arrived = asyncio.Event()

    async def tell(context: Context) -> None:
        arrived.set()

    bench.policy.before = tell
    await bench.queue.issue([order("e1"), order("e2")])
    async with asyncio.timeout(60):
        await arrived.wait()
    await bench.worker.drain(30.0)
    assert (await bench.trajectory()).spec.episode_id == "e1"
    assert await bench.waiting() == 1
