"""What a call brings back, over a real connection: answers, errors with details, limits, counts."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from tests.fuzzing import bombard, bombard_stream
from tests.integration.rpc.servicers import ENV, POLICY, Serve, eventually
from vlarl.config.network import ChannelConfig
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rpc.channel import open_channel, open_sync_channel, server_health
from vlarl.rpc.errors import describe, reason, violations

SEVEN = [0.0] * 7


def ask(wish: str = "", image: bytes = b"x") -> policy_pb2.PredictActionsRequest:
    return policy_pb2.PredictActionsRequest(
        observations=[policy_pb2.Observation(image=image, instruction=wish)]
    )


def header(version: int) -> policy_pb2.UpdateWeightsRequest:
    return policy_pb2.UpdateWeightsRequest(header=policy_pb2.AdapterHeader(version=version))


def chunk(tensor: int, size: int = 10) -> policy_pb2.UpdateWeightsRequest:
    part = policy_pb2.AdapterChunk(tensor=tensor, data=bytes(size))
    return policy_pb2.UpdateWeightsRequest(chunk=part)


def step(action: list[float]) -> env_pb2.InteractRequest:
    return env_pb2.InteractRequest(step=env_pb2.StepEpisode(action=action))


async def test_all_kinds_of_methods_answer(serve: Serve) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)
        env = env_pb2_grpc.EnvServiceStub(channel)
        assert (await policy.PredictActions(ask())).actions[0].policy_version == 3
        answer = await policy.UpdateWeights(iter([header(2), chunk(0), chunk(1)]))
        assert (answer.policy_version, answer.bytes) == (2, 20)
        call = env.Interact()
        for expected in range(3):
            await call.write(step(SEVEN) if expected else env_pb2.InteractRequest())
            assert (await call.read()).control_steps == expected
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    assert served.handled("PredictActions", "OK") == 1
    assert served.handled("UpdateWeights", "OK") == 1
    assert served.handled("Interact", "OK", ENV) == 1


async def test_synchronous_channels_do_the_same(serve: Serve) -> None:
    served = await serve()

    def converse() -> tuple[int, list[int]]:
        def requests() -> Iterator[env_pb2.InteractRequest]:
            yield from [step(SEVEN), step(SEVEN)]

        with open_sync_channel(served.address) as channel:
            policy = policy_pb2_grpc.PolicyServiceStub(channel)
            env = env_pb2_grpc.EnvServiceStub(channel)
            answer = policy.UpdateWeights(iter([header(2), chunk(0)]))
            future = policy.PredictActions.future(ask())
            assert future.result().actions[0].policy_version == 3
            return answer.bytes, [r.control_steps for r in env.Interact(requests())]

    assert await asyncio.to_thread(converse) == (10, [1, 2])


async def test_bad_arguments_arrive_field_by_field(serve: Serve) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(ask("be strict"))
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error) == [("observations[0].image", "not a picture"), ("unnorm_key", "?")]
    assert describe(error) == (
        "observations[0].image: not a picture; unnorm_key: ? (INVALID_ARGUMENT)"
    )
    await served.counts("PredictActions", "INVALID_ARGUMENT", 1)


async def test_an_error_ends_a_request_stream_half_way(serve: Serve) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)

        async def endless() -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
            yield header(2)
            while True:
                yield chunk(9)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy.UpdateWeights(endless())
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert reason(caught.value) == "CHECKSUM"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy.UpdateWeights(iter([header(0)]))
        assert reason(caught.value) == "OLDER_VERSION"
        assert violations(caught.value) == []


async def test_an_error_ends_a_response_stream(serve: Serve) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        call = env_pb2_grpc.EnvServiceStub(channel).Interact()
        await call.write(step(SEVEN))
        assert (await call.read()).control_steps == 1
        await call.write(step([0.5]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert violations(caught.value) == [("step.action", "the gripper's must be 0 or 1")]
    assert served.env.open_episodes == 0


async def test_the_unexpected_is_logged_once_and_its_text_stays_here(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(ask("crash"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert reason(caught.value) == "UNEXPECTED"
    records = [record for record in caplog.records if record.exc_info]
    assert len(records) == 1
    assert "ZeroDivisionError: a secret detail" in caplog.text


async def test_methods_that_are_not_there(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).GetPolicy(
                policy_pb2.GetPolicyRequest()
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        unknown = channel.unary_unary("/vlarl.policy.v1.PolicyService/Dance")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert describe(caught.value) == (
            "the server has no such method: is this another service's address? (UNIMPLEMENTED)"
        )
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_call_has_a_deadline_even_if_its_caller_set_none(serve: Serve) -> None:
    served = await serve()
    async with open_channel(served.address, ChannelConfig(timeout_seconds=0.2)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(ask("hang"))
        assert describe(caught.value) == "no answer before the deadline (DEADLINE_EXCEEDED)"
        await asyncio.wait_for(served.policy.cancelled.wait(), 5)
    await served.counts("PredictActions", "DEADLINE_EXCEEDED", 1)


async def test_the_server_bounds_unary_calls_by_itself(serve: Serve) -> None:
    served = await serve(max_unary_seconds=0.2)
    async with open_channel(served.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(ask("hang"))
    assert reason(caught.value) == "SERVER_LIMIT"
    assert "longer than 0.2 s" in describe(caught.value)


async def test_a_client_that_leaves_unwinds_the_servicer_at_once(serve: Serve) -> None:
    served = await serve()
    channel = open_channel(served.address)
    call = env_pb2_grpc.EnvServiceStub(channel).Interact()
    await call.write(step(SEVEN))
    await call.read()
    assert served.env.open_episodes == 1
    await channel.close()
    await asyncio.wait_for(served.env.closed.wait(), 5)
    assert served.env.open_episodes == 0


async def test_a_cancelled_call_is_cancelled_in_the_servicer_and_counted(serve: Serve) -> None:
    served = await serve()
    async with open_channel(served.address) as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(ask("hang"))
        await served.policy.started.wait()
        call.cancel()
        await asyncio.wait_for(served.policy.cancelled.wait(), 5)
    await served.counts("PredictActions", "CANCELLED", 1)


async def test_messages_above_the_limit_are_refused_both_ways(serve: Serve) -> None:
    served = await serve(max_message_mib=2)
    roomy = ChannelConfig(max_message_mib=64)
    async with open_channel(served.address, roomy) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)
        assert await policy.PredictActions(ask(image=bytes(2**20)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy.PredictActions(ask(image=bytes(3 * 2**20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    large = await serve(max_message_mib=64)
    async with open_channel(large.address) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)
        assert await policy.PredictActions(ask(image=bytes(31 * 2**20)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy.PredictActions(ask(image=bytes(33 * 2**20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_refused_request_is_let_go_without_the_garbage_collector(serve: Serve) -> None:
    """Requests of 30 MiB that wait for it took a gigabyte in twenty calls."""
    served = await serve()
    kinds = (env_pb2.InteractRequest, policy_pb2.PredictActionsRequest)
    strict, short = ask("be strict").SerializeToString(), step([0.5]).SerializeToString()

    def alive() -> int:
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        async with open_channel(served.address) as channel:
            streams = [[short]] * 5
            codes = await bombard_stream(channel, f"/{ENV}/Interact", streams, answers=True)
            codes += await bombard(channel, f"/{POLICY}/PredictActions", [strict] * 5)
        assert codes == {grpc.StatusCode.INVALID_ARGUMENT: 10}
        await eventually(lambda: alive() == before)
    finally:
        gc.enable()


async def test_calls_above_the_bound_are_refused_and_health_still_answers(serve: Serve) -> None:
    served = await serve(max_concurrent_rpcs=1)
    async with open_channel(served.address) as channel:
        policy = policy_pb2_grpc.PolicyServiceStub(channel)
        first = policy.PredictActions(ask("hang"))
        await served.policy.started.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await policy.PredictActions(ask())
        assert reason(caught.value) == "TOO_MANY_CALLS"
        assert await asyncio.to_thread(server_health, served.address, None, POLICY) == "SERVING"
        served.policy.release.set()
        await first
        assert await policy.PredictActions(ask())
