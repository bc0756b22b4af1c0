"""Damaged, senseless and enormous requests: each is answered, with the right code, and neither the
server nor its simulator is harmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from tests.fuzzing import (
    bombard,
    bombard_stream,
    bombard_without_leak,
    damaged,
    fuzz_requests,
    large,
    said,
    wild,
)
from tests.integration.env.test_env_service import Server, reset, scrape, step
from vlarl.config import ChannelConfig
from vlarl.env.v1 import env_pb2
from vlarl.rpc.channel import open_channel, wait_until_serving

pytestmark = [pytest.mark.sim, pytest.mark.slow]

SERVICE = "/vlarl.env.v1.EnvService"
REQUESTS, STREAMS = fuzz_requests(400), fuzz_requests(120)
CODE = grpc.StatusCode
WORDS = ("reach", "reach", "reach", "agentview", "agentview", "robot0_eye_in_hand")
SHORT = 8
"""Control steps of the episodes here: the door is what is tried."""


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # The same simulator to the end, so that a test sees whether a message cost it.
    patient = {"settle_steps": 0, "step_timeout_seconds": 60, "recycle_episodes": 1_000_000}
    started = Server(tmp_path_factory.mktemp("server"), **patient)
    yield started
    started.end()


@pytest.fixture
async def server(lasting: Server) -> Server:
    async with open_channel(lasting.address) as channel:
        await wait_until_serving(channel, "vlarl.env.v1.EnvService", 60)
    return lasting


async def episode(channel: grpc.aio.Channel) -> list[bytes]:
    """What an orderly client sees."""
    call = channel.stream_stream(
        f"{SERVICE}/Interact",
        env_pb2.InteractRequest.SerializeToString,
        env_pb2.InteractResponse.FromString,
    )()
    frames = []
    for request in (reset(max_control_steps=SHORT), step(), step()):
        await call.write(request)
        frames.append((await call.read()).frames[0].image)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return frames


async def test_listing(server: Server) -> None:
    rng = np.random.default_rng(21)
    kind = env_pb2.ListTasksRequest
    good = [kind(suite="reach").SerializeToString(), kind(suite="libero_goal").SerializeToString()]
    huge = [large(kind, "suite", "é"), large(kind, "suite", "reach")]
    payloads = [
        wild(rng, kind, WORDS).SerializeToString() if number % 4 == 0 else damaged(rng, good)
        for number in range(REQUESTS)
    ]
    async with open_channel(server.address) as channel:
        await bombard(channel, f"{SERVICE}/ListTasks", [*good, b"", *huge])
        codes = await bombard_without_leak(
            server.process.pid,
            lambda: bombard(channel, f"{SERVICE}/ListTasks", [*payloads, *huge]),
        )
    said("ListTasks", codes.items())
    assert set(codes) <= {CODE.INVALID_ARGUMENT, CODE.OK}, codes
    assert min(codes[CODE.INVALID_ARGUMENT], codes[CODE.OK]) > REQUESTS / 20, codes


async def test_episodes(server: Server) -> None:
    rng = np.random.default_rng(22)
    start = reset(max_control_steps=SHORT)
    kind = env_pb2.InteractRequest
    parts = [one.SerializeToString() for one in (start, step(), step(repeat=2))]
    nan = step([float("nan")] * 7).SerializeToString()
    huge = [
        [large(kind, "reset.task.suite", "reach")],
        [large(kind, "reset.cameras", "agentview")],
        [parts[0], large(kind, "step.action", 0.5)],
    ]
    disorder = [
        [],
        [b""],
        [parts[1]],
        [parts[0], parts[0]],
        [parts[0], nan],
        [parts[0], *[parts[1]] * 3],
        [parts[0], b"", parts[1]],
    ]

    def stream(number: int) -> list[bytes]:
        if number % 40 == 0:
            return disorder[number // 40 % len(disorder)]
        # One in twelve comes in: the others are refused at the door, at a hundredth of the price.
        first = parts[0] if number % 12 == 0 else damaged(rng, parts[:1])
        if number % 3 == 0:
            return [first, *(_wild_step(rng) for _ in range(3))]
        return [first, damaged(rng, parts), damaged(rng, parts)]

    async with open_channel(server.address, ChannelConfig(timeout_seconds=60)) as channel:
        expected = await episode(channel)
        await bombard_stream(channel, f"{SERVICE}/Interact", huge * 2, answers=True)
        simulators = server.simulators()
        streams = [*map(stream, range(STREAMS)), *huge * 2]
        codes = await bombard_without_leak(
            server.process.pid,
            lambda: bombard_stream(channel, f"{SERVICE}/Interact", streams, answers=True),
        )
        assert server.simulators() == simulators, "a client's message cost a simulator"
        assert await episode(channel) == expected
    said("Interact", codes.items())
    assert set(codes) <= {CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION, CODE.OK}, codes
    assert codes[CODE.INVALID_ARGUMENT] > STREAMS / 2, codes
    assert codes[CODE.OK] > 0, codes
    text = await asyncio.to_thread(scrape, server.metrics)
    assert "vlarl_env_active_envs 0.0" in text
    lost = [line for line in text.splitlines() if "simulator_restarts_total{" in line]
    assert lost
    assert all(line.endswith(" 0.0") for line in lost if "recycled" not in line), lost


def _wild_step(rng: np.random.Generator) -> bytes:
    """Nonsense that is mostly a step, and not one that takes seconds."""
    message = wild(rng, env_pb2.InteractRequest, WORDS)
    if rng.random() < 0.8:
        message.step.action[:] = message.step.action or [1.0] * 7
    return message.SerializeToString()
