"""Real simulator processes, and what happens when they hang, die, or wear out."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.errors import (
    CommandRefusedError,
    NoSimulatorError,
    SimulatorDiedError,
    SimulatorHungError,
)
from vlarl_env.metrics import EnvMetrics
from vlarl_env.pool import SimulatorPool
from vlarl_env.process import SimulatorProcess

pytestmark = pytest.mark.sim

REACH = rollout_pb2.Task(suite="reach", index=0)
STEP = env_pb2.StepEpisode(action=[0.0] * 7)


def reset(seed: int = 3) -> env_pb2.ResetEpisode:
    return env_pb2.ResetEpisode(task=REACH, placement_seed=seed)


def settings(**changed: object) -> EnvConfig:
    return EnvConfig(processes=1, profile="fast", render_size=64).model_copy(update=changed)


class Fixture:
    """A registry of its own for each test, and reading it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = EnvMetrics(self.registry)

    def pool(self, config: EnvConfig) -> SimulatorPool:
        return SimulatorPool(config, [], self.metrics)

    def value(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"vlarl_env_{name}", labels)
        assert found is not None, name
        return found


@pytest.fixture
def counted() -> Fixture:
    return Fixture()


async def step_after(pool: SimulatorPool, number: signal.Signals) -> None:
    """A step of a simulator that has just received a signal."""
    async with pool.slot() as slot:
        simulator = slot.simulator(REACH)
        await simulator.reset(reset())
        os.kill(simulator.pid, number)
        await simulator.step(STEP)


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_process_answers_refuses_and_is_used_again(counted: Fixture) -> None:
    async with counted.pool(settings()) as pool:
        (pid,) = pool.pids
        async with pool.slot() as slot:
            simulator = slot.simulator(REACH)
            with pytest.raises(CommandRefusedError, match="first command must be a reset"):
                await simulator.step(STEP)
            assert not simulator.has_loaded("reach", 0)
            first = await simulator.reset(reset())
            assert simulator.has_loaded("reach", 0)
            with pytest.raises(CommandRefusedError, match="7 finite numbers"):
                await simulator.step(env_pb2.StepEpisode(action=[1.0]))
            assert (await simulator.step(STEP)).control_steps == 1
            assert counted.value("active_envs") == 1
        async with pool.slot() as slot:
            again = await slot.simulator(REACH).reset(reset())
            assert again.SerializeToString() == first.SerializeToString()
        assert pool.pids == [pid]
        assert counted.value("control_steps_total") == 1
        assert counted.value("render_seconds_total") > 0
        assert counted.value("physics_seconds_total") > 0
        assert counted.value("active_envs") == 0
        assert counted.value("simulators") == 1
    assert ended(pid)


async def test_a_killed_simulator_is_reported_and_replaced(counted: Fixture) -> None:
    async with counted.pool(settings()) as pool:
        (pid,) = pool.pids
        with pytest.raises(SimulatorDiedError, match="killed by SIGKILL"):
            await step_after(pool, signal.SIGKILL)
        async with pool.slot() as slot:
            assert (await slot.simulator(REACH).reset(reset())).control_steps == 0
        assert pool.pids != [pid]
        assert counted.value("simulator_restarts_total", cause="died") == 1


async def test_a_hung_simulator_is_killed_and_replaced(counted: Fixture) -> None:
    async with counted.pool(settings(step_timeout_seconds=1.0)) as pool:
        (pid,) = pool.pids
        with pytest.raises(SimulatorHungError, match=r"no answer for \d+\.\d s"):
            await step_after(pool, signal.SIGSTOP)
        assert ended(pid)
        async with pool.slot() as slot:
            assert slot.simulator(REACH).pid != pid
        assert counted.value("simulator_restarts_total", cause="hung") == 1


async def test_a_process_that_a_kill_does_not_end_at_once_is_waited_for(
    counted: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that sits in a driver: no other takes its memory's place, and no call fails."""
    monkeypatch.setattr("vlarl_env.process._EXIT_SECONDS", 0.1)
    monkeypatch.setattr("vlarl_env.pool._RESPAWN_PAUSES", (0.0, 0.2))
    children = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda child: children.append(child))
    async with counted.pool(settings(step_timeout_seconds=1.0)) as pool:
        (pid,) = pool.pids
        with pytest.raises(SimulatorHungError, match=r"no answer for \d+\.\d s"):
            await step_after(pool, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        assert not pool.pids
        assert not ended(pid)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60), pool.slot() as slot:
            last = slot.simulator(REACH).pid
            os.kill(last, signal.SIGSTOP)
    os.kill(last, signal.SIGKILL)
    children[-1].wait()


async def test_a_first_step_may_take_as_long_as_a_construction(counted: Fixture) -> None:
    """It compiles some of robosuite where nobody has before."""
    config = settings(settle_steps=0, step_timeout_seconds=1e-9)
    async with counted.pool(config) as pool, pool.slot() as slot:
        simulator = slot.simulator(REACH)
        await simulator.reset(reset())
        await simulator.step(STEP)
        with pytest.raises(SimulatorHungError):
            await simulator.step(STEP)


async def test_simulators_step_in_turn(counted: Fixture) -> None:
    config = settings(processes=2, concurrent_steps=1)
    async with counted.pool(config) as pool, pool.slot() as one, pool.slot() as other:
        first, second = one.simulator(REACH), other.simulator(REACH)
        await asyncio.gather(first.reset(reset()), second.reset(reset()))
        os.kill(first.pid, signal.SIGSTOP)
        steps = [asyncio.create_task(simulator.step(STEP)) for simulator in (first, second)]
        done, _ = await asyncio.wait(steps, timeout=1.0)
        assert not done, "the second has not waited for the first"
        os.kill(first.pid, signal.SIGCONT)
        assert [answer.control_steps for answer in await asyncio.gather(*steps)] == [1, 1]


async def test_an_abandoned_call_does_not_disturb_the_next(counted: Fixture) -> None:
    async with counted.pool(settings()) as pool:
        (pid,) = pool.pids
        async with pool.slot() as slot:
            simulator = slot.simulator(REACH)
            await simulator.reset(reset())
            call = asyncio.create_task(simulator.step(STEP))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        async with pool.slot() as slot:
            simulator = slot.simulator(REACH)
            assert (await simulator.reset(reset(4))).control_steps == 0
            assert (await simulator.step(STEP)).control_steps == 1
        assert pool.pids == [pid]


async def test_a_worn_out_simulator_is_recycled(counted: Fixture) -> None:
    async with counted.pool(settings(recycle_episodes=2)) as pool:
        (pid,) = pool.pids
        seen = []
        for _ in range(3):
            async with pool.slot() as slot:
                simulator = slot.simulator(REACH)
                seen.append(simulator.pid)
                await simulator.reset(reset())
        assert seen[:2] == [pid, pid]
        assert seen[2] != pid
        assert counted.value("simulator_restarts_total", cause="recycled") == 1


@pytest.mark.slow
async def test_two_processes_work_at_once_and_keep_their_tasks(counted: Fixture) -> None:
    other = rollout_pb2.Task(suite="libero_object", index=0)
    async with counted.pool(settings(processes=2)) as pool:
        async with pool.slot() as one, pool.slot() as two:
            first, second = one.simulator(REACH), two.simulator(other)
            assert first.pid != second.pid
            command = env_pb2.ResetEpisode(task=other, init_state=0)
            await asyncio.gather(first.reset(reset()), second.reset(command))
        for task, pid in [(other, second.pid), (REACH, first.pid), (other, second.pid)]:
            async with pool.slot() as slot:
                assert slot.simulator(task).pid == pid


async def test_a_pool_that_cannot_start_says_so(
    counted: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    with pytest.raises(NoSimulatorError, match=r"no simulator comes up: .*ended with status 1"):
        async with counted.pool(settings()):
            pass


PARENT = """
import asyncio
from prometheus_client import CollectorRegistry
from vlarl_env.metrics import EnvMetrics
from vlarl_env.process import SimulatorProcess
from vlarl.config import EnvConfig

async def main():
    metrics = EnvMetrics(CollectorRegistry())
    config, turns = EnvConfig(profile="fast"), asyncio.Semaphore()
    simulator = await SimulatorProcess.spawn(config, None, metrics, turns)
    print(simulator.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_simulators_die_with_their_server(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # Even a simulator that answers nothing.
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    deadline = time.monotonic() + 10
    while not _gone(pid):
        assert time.monotonic() < deadline, f"simulator {pid} outlives its server"
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    """Ended, or a zombie that nobody has reaped yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_spawn_gives_up_on_a_process_that_never_gets_ready(counted: Fixture) -> None:
    with pytest.raises(SimulatorHungError):
        await SimulatorProcess.spawn(
            settings(construct_timeout_seconds=0.01), None, counted.metrics, asyncio.Semaphore()
        )
