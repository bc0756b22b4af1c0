"""A swap of weights while clients ask."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass

from benchmarks.gpu_check.check import Check
from benchmarks.policy_load import Load
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.channel import open_channel
from vlarl.weights.adapter import Adapter, update_requests

_CLIENTS = 8
_ANSWERS_BEFORE = 24
_SECONDS_AFTER = 1.5


@dataclass(frozen=True)
class Swap:
    """A swap, and what its clients saw.

    Attributes:
        answer: the server's.
        load: the clients.
        began, ended: first and last message, by `time.perf_counter`.
    """

    answer: pb.UpdateWeightsResponse
    load: Load
    began: float
    ended: float

    @property
    def versions_after(self) -> set[int]:
        """Versions of the actions that were asked for after it."""
        asked = zip(self.load.latencies, self.load.versions, strict=True)
        return {version for (began, _), version in asked if began > self.ended}

    def add_to(self, check: Check, name: str) -> None:
        """Adds what it cost."""
        usual = [end - begin for begin, end in self.load.latencies if end < self.began]
        during = [
            end - begin
            for begin, end in self.load.latencies
            if begin < self.ended and end > self.began
        ]
        add, failed = check.results.add, self.load.failed
        mib = self.answer.bytes / 2**20
        add(f"{name}, first to last message", self.answer.seconds, "s", f"{mib:.1f} MiB of factors")
        add(f"{name}, no action could start", self.answer.pause_seconds, "s")
        note = f"usually {statistics.median(usual):.3f} s"
        add(f"{name}, longest answer", max(during, default=0.0), "s", note)
        answers = f"of {len(self.load.latencies)}"
        add(f"{name}, requests failed", failed, answers, self.load.first_failure, failed == 0)
        version = self.answer.policy_version
        served = self.versions_after == {version}
        add(f"{name}, versions after it", sorted(self.versions_after), ok=served)


async def swap_under_load(
    client: AsyncPolicyClient, address: str, adapter: Adapter, key: str, seconds: float
) -> Swap:
    """Sends an adapter while clients ask.

    Args:
        client: who they are.
        address: the server's.
        adapter: the new weights.
        key: dataset of the actions.
        seconds: that the swap may take.
    """
    requests = list(update_requests(adapter))
    load, stop = Load(client, _CLIENTS, key=key), asyncio.Event()
    asking = asyncio.create_task(load.run(None, stop))
    try:
        while len(load.latencies) < _ANSWERS_BEFORE and not load.failed:
            await asyncio.sleep(0.02)
        async with open_channel(address) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            began = time.perf_counter()
            answer = await stub.UpdateWeights(iter(requests), timeout=seconds)
            ended = time.perf_counter()
        await asyncio.sleep(_SECONDS_AFTER)
    finally:
        stop.set()
        await asking
    return Swap(answer, load, began, ended)
