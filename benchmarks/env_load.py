"""What the env's benchmarks share: a served pool, and clients that keep its simulators stepping."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlarl.config import ChannelConfig, EnvConfig, RunConfig, dump_toml
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.channel import open_channel, wait_until_serving

WARM_UP = 5
"""Steps before the clock runs."""
LONG_EPISODE = 10_000


def actions() -> Iterator[npt.NDArray[np.float64]]:
    """Small random motions [7] in the dataset's units, gripper open; the same for everybody."""
    generator = np.random.default_rng(7)
    while True:
        yield np.append(np.clip(generator.normal(0, 0.3, 6), -1, 1), 1.0)


def reset_command(suite: str, index: int) -> env_pb2.ResetEpisode:
    """An episode that doesn't end while it is measured."""
    task = rollout_pb2.Task(suite=suite, index=index)
    return env_pb2.ResetEpisode(task=task, placement_seed=0, max_control_steps=LONG_EPISODE)


@contextmanager
def serving(env: EnvConfig, python: str = sys.executable) -> Iterator[str]:
    """A server in a process of its own, run by that interpreter; its address."""
    with tempfile.TemporaryDirectory(prefix="vlarl-") as name:
        folder = Path(name)
        (folder / "run.toml").write_text(dump_toml(RunConfig(env=env)), encoding="utf-8")
        process = subprocess.Popen(
            [
                *(python, "-m", "vlarl", "serve", "env", "--no-queue"),
                *("--config", str(folder / "run.toml"), "--listen", "127.0.0.1:0"),
                *("--address-file", str(folder / "address"), "--drain-seconds", "1"),
            ]
        )
        try:
            while not (folder / "address").exists():
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with status {process.returncode}")
                time.sleep(0.05)
            yield (folder / "address").read_text(encoding="utf-8").strip()
        finally:
            process.terminate()
            process.wait()


async def drive(
    address: str,
    reset: env_pb2.ResetEpisode,
    seconds: float,
    episodes: int,
    repeat: int = 1,
    horizon: int = 1,
) -> float:
    """Actions a second over so many episodes at once, each held for `repeat` control steps, and
    sent `horizon` at a time.
    """
    async with open_channel(address, ChannelConfig(timeout_seconds=600)) as channel:
        await wait_until_serving(channel, "", 120)
        stub: env_pb2_grpc.EnvServiceAsyncStub = env_pb2_grpc.EnvServiceStub(channel)
        ready = asyncio.Barrier(episodes)
        return sum(
            await asyncio.gather(
                *(_episode(stub, reset, seconds, ready, repeat, horizon) for _ in range(episodes))
            )
        )


async def _episode(
    stub: env_pb2_grpc.EnvServiceAsyncStub,
    reset: env_pb2.ResetEpisode,
    seconds: float,
    ready: asyncio.Barrier,
    repeat: int,
    horizon: int,
) -> float:
    call = stub.Interact()
    await call.write(env_pb2.InteractRequest(reset=reset))
    await call.read()
    moves = actions()

    async def step() -> None:
        chunk = np.concatenate([next(moves) for _ in range(horizon)])
        command = env_pb2.StepEpisode(action=chunk, repeat=repeat, horizon=horizon)
        await call.write(env_pb2.InteractRequest(step=command))
        answer = await call.read()
        if not (isinstance(answer, env_pb2.InteractResponse) and answer.frames[0].image):
            raise RuntimeError("an answer without a frame")

    for _ in range(WARM_UP):
        await step()
    await ready.wait()
    began = time.perf_counter()
    steps = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        await step()
        steps += 1
    call.cancel()
    return steps * horizon / elapsed
