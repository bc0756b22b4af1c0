"""Retries, balancing over replicas, and waiting for a server."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest

from tests.integration.rpc.servicers import POLICY, Serve
from vlarl.clients.policy import AsyncPolicyClient, PolicyError
from vlarl.config.network import ChannelConfig
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rpc.channel import open_channel, server_health, wait_until_serving

IMAGE, WISH = b"image", "lift the bowl"


@pytest.mark.parametrize("size", [10, 2**20])
async def test_an_unavailable_server_is_asked_again(serve: Serve, size: int) -> None:
    served = await serve()
    served.policy.unavailable = 2
    async with AsyncPolicyClient(served.address) as client:
        await client.predict(bytes(size), WISH, seed=1)
    assert served.policy.calls == 3


async def test_retries_end(serve: Serve) -> None:
    served = await serve()
    served.policy.unavailable = 100
    async with AsyncPolicyClient(served.address) as client:
        with pytest.raises(PolicyError) as caught:
            await client.predict(IMAGE, WISH, seed=1)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert str(caught.value) == f"{served.address}: the engine is restarting (UNAVAILABLE)"
    assert served.policy.calls == 5


async def test_only_unavailable_is_retried(serve: Serve) -> None:
    served = await serve()
    async with AsyncPolicyClient(served.address) as client:
        for wish in ("be strict", "crash"):
            with pytest.raises(PolicyError):
                await client.predict(IMAGE, wish, seed=1)
    assert served.policy.calls == 2


async def test_retries_can_be_switched_off(serve: Serve) -> None:
    served = await serve()
    served.policy.unavailable = 1
    async with open_channel(served.address, ChannelConfig(retries=0)) as channel:
        request = policy_pb2.PredictActionsRequest(observations=[policy_pb2.Observation()])
        with pytest.raises(grpc.aio.AioRpcError):
            await policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(request)
    assert served.policy.calls == 1


async def test_calls_go_round_the_replicas(serve: Serve) -> None:
    both = [await serve(), await serve()]
    async with AsyncPolicyClient(",".join(served.address for served in both)) as client:
        # Both are connected once each of them has been seen.
        async with asyncio.timeout(10):
            while not all(served.policy.calls for served in both):
                await client.predict(IMAGE, WISH, seed=1)
        before = [served.policy.calls for served in both]
        for _ in range(20):
            await client.predict(IMAGE, WISH, seed=1)
    assert [s.policy.calls - b for s, b in zip(both, before, strict=True)] == [10, 10]


async def test_a_replica_that_stops_under_load_costs_no_call(serve: Serve) -> None:
    both = [await serve(), await serve()]
    done = asyncio.Event()

    async def load(client: AsyncPolicyClient) -> int:
        calls = 0
        while not done.is_set() or calls < 50:
            await client.predict(IMAGE, WISH, seed=1)
            calls += 1
        return calls

    async with AsyncPolicyClient(",".join(served.address for served in both)) as client:
        loads = [asyncio.create_task(load(client)) for _ in range(4)]
        async with asyncio.timeout(10):
            while min(served.policy.calls for served in both) < 5:
                await asyncio.sleep(0.01)
        both[0].server.set_serving(False)
        await both[0].server.grpc.stop(5)
        survivor = both[1].policy.calls
        done.set()
        calls = sum(await asyncio.gather(*loads))
    assert both[0].policy.calls + both[1].policy.calls >= calls
    assert both[1].policy.calls > survivor


async def test_waiting_for_a_server_that_starts_late(serve: Serve) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    async with open_channel(address) as channel:
        waiting = asyncio.create_task(wait_until_serving(channel, POLICY, 20))
        await asyncio.wait({waiting}, timeout=0.3)
        assert not waiting.done()
        assert await asyncio.to_thread(server_health, address) != "SERVING"
        served = await serve(listen=address)
        served.server.set_serving(False)
        await asyncio.wait({waiting}, timeout=1.5)
        assert not waiting.done()
        served.server.set_serving(True)
        await waiting


async def test_waiting_ends_with_the_last_state(serve: Serve) -> None:
    served = await serve()
    served.server.set_serving(False)
    async with open_channel(served.address) as channel:
        with pytest.raises(TimeoutError, match=r"after 0\.3 s: NOT_SERVING"):
            await wait_until_serving(channel, POLICY, 0.3)
        with pytest.raises(TimeoutError, match=r"Dance isn't serving .* SERVICE_UNKNOWN"):
            await wait_until_serving(channel, "Dance", 0.3)
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(TimeoutError, match=r"the server isn't serving .* not reachable"):
            await wait_until_serving(channel, "", 0.3)
