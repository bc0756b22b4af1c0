"""Callers that are too fast, over real connections."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.integration.rpc.servicers import ENV, POLICY, Serve, Served
from vlarl.clients.env import EnvClient
from vlarl.clients.policy import AsyncPolicyClient, PolicyClient, PolicyError
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rpc.channel import open_channel, server_health
from vlarl.rpc.errors import reason, retry_seconds

IMAGE, WISH = b"image", "lift the bowl"
OWN, ALICE, BOB = "own", "alice", "bob"
HOURLY = 1 / 3600
"""Calls a second so few that no test sees a bucket fill."""


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, object]:
    """Two clients, and the services."""
    (tmp_path / "own").write_text(OWN)
    (tmp_path / "clients").write_text(f"{ALICE}\n{BOB}\n")
    return {"token_file": tmp_path / "own", "client_token_file": tmp_path / "clients"}


def throttled(served: Served, method: str, service: str = POLICY) -> float:
    labels = {"grpc_service": service, "grpc_method": method}
    return served.server.registry.get_sample_value("grpc_server_throttled_total", labels) or 0.0


async def ask(address: str, token: str) -> grpc.aio.AioRpcError | None:
    """How one bare call is refused."""
    async with open_channel(address, token=token) as channel:
        request = policy_pb2.PredictActionsRequest(observations=[policy_pb2.Observation()])
        try:
            await policy_pb2_grpc.PolicyServiceStub(channel).PredictActions(request)
        except grpc.aio.AioRpcError as error:
            return error
    return None


async def test_a_client_that_is_too_fast_is_told_when_to_come_back(
    serve: Serve, tokens: dict[str, object]
) -> None:
    served = await serve(**tokens, client_calls_per_second=HOURLY, client_burst=3)
    assert [await ask(served.address, ALICE) for _ in range(3)] == [None] * 3
    error = await ask(served.address, ALICE)
    assert error is not None
    assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_FAST")
    wait = retry_seconds(error)
    assert wait is not None
    assert 3000 < wait <= 3600
    assert await ask(served.address, BOB) is None, "one client's haste is another's trouble"
    assert served.policy.calls == 4
    assert throttled(served, "PredictActions") == 1
    await served.counts("PredictActions", "RESOURCE_EXHAUSTED", 1)


async def test_the_runs_own_services_and_health_are_never_slowed_down(
    serve: Serve, tokens: dict[str, object]
) -> None:
    served = await serve(**tokens, client_calls_per_second=HOURLY, client_burst=1)
    assert await ask(served.address, ALICE) is None
    assert await ask(served.address, ALICE) is not None
    async with AsyncPolicyClient(served.address, token=OWN) as client:
        for _ in range(50):
            await client.predict(IMAGE, WISH, seed=1)
    for _ in range(5):
        assert await asyncio.to_thread(server_health, served.address) == "SERVING"


async def test_guesses_of_tokens_are_slowed_down_by_address(
    serve: Serve, tokens: dict[str, object]
) -> None:
    served = await serve(**tokens, client_calls_per_second=HOURLY, client_burst=2)
    codes = []
    for guess in ("a", "b", "c", "d"):
        error = await ask(served.address, guess)
        assert error is not None
        codes.append(error.code().name)
    assert codes == ["UNAUTHENTICATED"] * 2 + ["RESOURCE_EXHAUSTED"] * 2
    assert await ask(served.address, ALICE) is None, "her address isn't what she is known by"


async def test_opening_a_stream_is_one_call_whatever_goes_through_it(
    serve: Serve, tokens: dict[str, object]
) -> None:
    served = await serve(**tokens, client_calls_per_second=HOURLY, client_burst=1)
    async with open_channel(served.address, token=ALICE) as channel:
        stub = env_pb2_grpc.EnvServiceStub(channel)
        call = stub.Interact()
        for number in range(1, 21):
            await call.write(env_pb2.InteractRequest(step=env_pb2.StepEpisode(action=[0.0] * 7)))
            assert (await call.read()).control_steps == number
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Interact().read()
    assert reason(caught.value) == "TOO_FAST"
    assert throttled(served, "Interact", ENV) == 1


async def test_the_client_waits_as_it_is_told(serve: Serve, tokens: dict[str, object]) -> None:
    served = await serve(**tokens, client_calls_per_second=5, client_burst=1)
    async with AsyncPolicyClient(served.address, token=ALICE) as client:
        await asyncio.gather(*(client.predict(IMAGE, WISH, seed=1) for _ in range(4)))

    def one_after_the_other() -> None:
        with PolicyClient(served.address, token=BOB) as client:
            for _ in range(4):
                client.predict(IMAGE, WISH, seed=1)

    await asyncio.to_thread(one_after_the_other)
    assert served.policy.calls == 8
    assert throttled(served, "PredictActions") > 0, "nobody was asked to wait"


async def test_the_simulators_client_waits_too(serve: Serve, tokens: dict[str, object]) -> None:
    served = await serve(**tokens, client_calls_per_second=5, client_burst=1)

    def list_and_play() -> None:
        with EnvClient(served.address, token=ALICE) as env:
            for seed in range(2):
                env.tasks("reach")
                env.episode("reach", placement_seed=seed).close()

    await asyncio.to_thread(list_and_play)
    assert throttled(served, "ListTasks", ENV) > 0, "nobody was asked to wait"
    assert throttled(served, "Interact", ENV) > 0, "nobody was asked to wait"


async def test_a_wait_beyond_the_deadline_is_said_at_once(
    serve: Serve, tokens: dict[str, object]
) -> None:
    served = await serve(**tokens, client_calls_per_second=HOURLY, client_burst=1)
    async with AsyncPolicyClient(served.address, token=ALICE) as client:
        await client.predict(IMAGE, WISH, seed=1)
        with pytest.raises(
            PolicyError, match=r"too many calls: .* allowed in 3\d+\.\d s"
        ) as caught:
            await client.predict(IMAGE, WISH, seed=1)
    assert caught.value.retry_seconds is not None
    assert caught.value.retry_seconds > 3000
