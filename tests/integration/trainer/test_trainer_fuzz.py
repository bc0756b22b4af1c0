"""Damaged and senseless requests to a run: each is answered, with the right code, and the run's
state is what orderly requests made it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.fuzzing import (  # noqa: E402
    bombard,
    bombard_answers,
    damaged,
    fuzz_requests,
    large,
    said,
    wild,
)
from tests.integration.trainer.test_trainer_publisher import adapter  # noqa: E402
from vlarl.config import ServerConfig  # noqa: E402
from vlarl.rpc.channel import open_channel  # noqa: E402
from vlarl.rpc.server import RpcServer  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2 as pb  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2_grpc  # noqa: E402
from vlarl_trainer.server import SERVICE, TrainerServicer  # noqa: E402
from vlarl_trainer.status import RunStatus  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

REQUESTS = fuzz_requests(400)
CODE = grpc.StatusCode
BOTH = {CODE.INVALID_ARGUMENT, CODE.OK}


@pytest.fixture
def status(checkpoint: Path) -> RunStatus:
    """A run that is done, and whose adapter is there to be fetched."""
    status = RunStatus("run", 2)
    status.history = [pb.Iteration(iteration=number) for number in range(2)]
    status.adapter = adapter(checkpoint, 2)
    status.state = pb.RUN_STATE_DONE
    status.checkpoint = Path("checkpoints/2")
    return status


@pytest.fixture
async def address(status: RunStatus) -> AsyncIterator[str]:
    server = RpcServer(ServerConfig(), [SERVICE])
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(TrainerServicer(status), server.grpc)
    yield await server.start()
    await server.stop()


@pytest.mark.parametrize("method", ["GetStatus", "Pause", "Resume", "Checkpoint"])
async def test_single_answers(address: str, status: RunStatus, method: str) -> None:
    rng = np.random.default_rng(41)
    payloads = [damaged(rng, [b"", b"\x0a\x03abc"]) for _ in range(REQUESTS)]
    async with open_channel(address) as channel:
        codes = await bombard(channel, f"/{SERVICE}/{method}", payloads)
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        said_after = await stub.GetStatus(pb.GetStatusRequest())
    said(method, codes.items())
    assert set(codes) == BOTH, codes
    assert (said_after.run_id, said_after.iterations, said_after.policy_version) == ("run", 2, 2)


async def test_streams_of_answers(address: str, status: RunStatus) -> None:
    rng = np.random.default_rng(42)
    assert status.adapter is not None
    digest = status.adapter.base_digest
    weights = pb.GetWeightsRequest(base_digest=digest).SerializeToString()
    some = pb.WatchIterationsRequest(from_iteration=1).SerializeToString()
    tasks = len(asyncio.all_tasks())
    async with open_channel(address) as channel:
        for method, kind, good, refusals in (
            ("GetWeights", pb.GetWeightsRequest, weights, {CODE.FAILED_PRECONDITION}),
            ("WatchIterations", pb.WatchIterationsRequest, some, set()),
        ):
            payloads = [
                wild(rng, kind, [digest]).SerializeToString()
                if number % 4 == 0
                else damaged(rng, [good])
                for number in range(REQUESTS)
            ]
            codes = await bombard_answers(channel, f"/{SERVICE}/{method}", [good, *payloads])
            said(method, codes.items())
            assert set(codes) == BOTH | refusals, codes
        huge = large(pb.GetWeightsRequest, "base_digest", "é")
        codes = await bombard_answers(channel, f"/{SERVICE}/GetWeights", [huge])
        assert codes == Counter([CODE.FAILED_PRECONDITION])
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)


async def test_watchers_that_leave_are_forgotten(address: str, status: RunStatus) -> None:
    await status.enter(pb.RUN_STATE_ROLLOUT)
    tasks = len(asyncio.all_tasks())
    async with open_channel(address) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        watching = [stub.WatchIterations(pb.WatchIterationsRequest()) for _ in range(100)]
        for call in watching:
            assert (await call.read()).iteration.iteration == 0
        for call in watching:
            call.cancel()
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)
    await status.complete(pb.Iteration(iteration=2))
    assert not status._changed._waiters
