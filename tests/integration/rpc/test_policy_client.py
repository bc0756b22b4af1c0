"""The client SDK against a server that tells what arrived."""

from __future__ import annotations

import asyncio
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.integration.rpc.servicers import Serve
from vlarl import Action, AsyncPolicyClient, PolicyClient
from vlarl.clients.policy import PolicyError

FRAME = np.random.default_rng(7).integers(0, 256, (24, 32, 3), dtype=np.uint8)
WISH = "lift the bowl"


async def test_an_action_is_typed_arrays(serve: Serve) -> None:
    served = await serve()
    async with AsyncPolicyClient(served.address) as client:
        action = await client.predict(b"image", WISH, temperature=0.5, seed=9)
    assert isinstance(action, Action)
    digest = hashlib.sha256(b"image").digest()
    assert action.token_ids.dtype == np.int64
    assert action.token_ids.tolist() == [32_000 - byte for byte in digest[:7]]
    assert action.logprobs.dtype == np.float32
    assert action.logprobs.tolist() == [-0.5] * 7
    assert action.values.dtype == np.float32
    assert action.values.tolist() == [9.0] * 7
    assert action.policy_version == 3


async def test_an_array_arrives_pixel_for_pixel_and_bytes_as_they_are(serve: Serve) -> None:
    served = await serve()
    async with AsyncPolicyClient(served.address) as client:
        for image in (FRAME, FRAME[::-1, :, ::-1], b"any bytes"):
            await client.predict(image, WISH)
    first, flipped, raw = served.policy.images
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first))), FRAME)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(flipped))), FRAME[::-1, :, ::-1])
    assert raw == b"any bytes"


async def test_a_batch_keeps_its_order_in_one_request(serve: Serve) -> None:
    served = await serve()
    images = [bytes([index]) for index in range(5)]
    async with AsyncPolicyClient(served.address) as client:
        actions = await client.predict_batch(
            [(image, WISH) for image in images], seeds=list(range(5))
        )
    assert [action.values[0] for action in actions] == list(range(5))
    assert served.policy.images == images
    assert served.policy.calls == 1


async def test_threads_share_a_synchronous_client(serve: Serve) -> None:
    served = await serve()

    def ask_all() -> list[float]:
        with PolicyClient(served.address) as client, ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(client.predict, b"x", WISH, seed=seed) for seed in range(40)]
            assert client.predict_batch([(b"x", WISH)], seeds=[5])[0].values[0] == 5
            return [float(call.result().values[0]) for call in calls]

    assert await asyncio.to_thread(ask_all) == list(range(40))


async def test_errors_name_the_address_and_the_fields(serve: Serve) -> None:
    served = await serve()

    def ask() -> PolicyError:
        with PolicyClient(served.address) as client, pytest.raises(PolicyError) as caught:
            client.predict(b"x", "be strict")
        return caught.value

    async with AsyncPolicyClient(served.address) as client:
        with pytest.raises(PolicyError) as caught:
            await client.predict(b"x", "be strict")
        with pytest.raises(PolicyError, match="GetPolicy isn't offered"):
            await client.get_policy()
    for error in (caught.value, await asyncio.to_thread(ask)):
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.violations == [
            ("observations[0].image", "not a picture"),
            ("unnorm_key", "?"),
        ]
        assert str(error).startswith(f"{served.address}: observations[0].image: not a picture; ")


async def test_nobody_there() -> None:
    async with AsyncPolicyClient("127.0.0.1:1", timeout_seconds=5) as client:
        with pytest.raises(PolicyError, match=r"^127\.0\.0\.1:1: .*refused") as caught:
            await client.predict(b"x", WISH)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_hangs(serve: Serve) -> None:
    served = await serve()
    async with AsyncPolicyClient(served.address, timeout_seconds=0.2) as client:
        with pytest.raises(PolicyError, match="no answer before the deadline"):
            await client.predict(b"x", "hang")


async def test_a_single_call_may_have_less_time(serve: Serve) -> None:
    served = await serve()

    def ask() -> PolicyError:
        with PolicyClient(served.address) as client, pytest.raises(PolicyError) as caught:
            client.predict(b"x", "hang", timeout_seconds=0.2)
        return caught.value

    async with AsyncPolicyClient(served.address) as client:
        with pytest.raises(PolicyError) as caught:
            await client.predict(b"x", "hang", timeout_seconds=0.2)
    for error in (caught.value, await asyncio.to_thread(ask)):
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.reason == ""
