"""The policy server's answers against plain torch, and what it refuses at the door."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

from tests.integration.policy.policy_harness import INSTRUCTIONS, KEY, Reference, frames
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.images import decode_image, prepare_image
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.rpc import errors
from vlarl.weights.checkpoint import base_digest

if TYPE_CHECKING:
    from vlarl.policy.v1.policy_pb2_grpc import PolicyServiceAsyncStub as Stub

pytestmark = [pytest.mark.torch, pytest.mark.slow]


async def back_to_base(stub: Stub, checkpoint: Path) -> None:
    header = pb.AdapterHeader(
        run_id="tests", base_digest=base_digest(checkpoint), dtype="float32", takeover=True
    )
    await stub.UpdateWeights(iter([pb.UpdateWeightsRequest(header=header)]))


async def test_it_describes_itself(client: AsyncPolicyClient, stub: Stub, checkpoint: Path) -> None:
    await back_to_base(stub, checkpoint)
    policy = await client.get_policy()
    assert policy.model == "tiny"
    assert policy.run_id == ""
    assert policy.policy_version == 0
    assert policy.action_dim == 7
    assert KEY in policy.unnorm_keys
    assert policy.image_size == 56
    assert policy.center_crop is False
    assert policy.action_bins == 256
    assert policy.dtype == "float32"
    assert policy.base_digest == base_digest(checkpoint)
    assert policy.merged_digest == ""


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("center_crop", [None, True])
async def test_logprobs_equal_plain_torch(
    client: AsyncPolicyClient,
    stub: Stub,
    checkpoint: Path,
    temperature: float,
    center_crop: bool | None,
) -> None:
    await back_to_base(stub, checkpoint)
    reference = Reference(checkpoint)
    images, instructions = frames(8), [*INSTRUCTIONS, *INSTRUCTIONS]
    actions = await client.predict_batch(
        list(zip(images, instructions, strict=True)),
        temperature=temperature,
        unnorm_key=KEY,
        center_crop=center_crop,
    )
    gap = reference.check(images, instructions, actions, temperature, center_crop)
    assert gap < 1e-4

    statistics = reference.config.spec.statistics(KEY)
    decoded = reference.config.action_tokenizer.decode(
        np.array([action.token_ids for action in actions])
    )
    values = np.array([action.values for action in actions])
    np.testing.assert_allclose(values, statistics.unnormalize(decoded), rtol=1e-6, atol=1e-6)
    assert {action.policy_version for action in actions} == {0}


async def test_the_crop_of_a_request_matters(client: AsyncPolicyClient, checkpoint: Path) -> None:
    image = frames(1)[0]
    plain = await client.predict(image, INSTRUCTIONS[0], unnorm_key=KEY)
    cropped = await client.predict(image, INSTRUCTIONS[0], unnorm_key=KEY, center_crop=True)
    assert list(plain.logprobs) != list(cropped.logprobs)


async def test_a_batch_answers_what_single_requests_do(client: AsyncPolicyClient) -> None:
    images = frames(4)
    pairs = list(zip(images, INSTRUCTIONS, strict=True))
    batch = await client.predict_batch(pairs, unnorm_key=KEY)
    for pair, together in zip(pairs, batch, strict=True):
        alone = await client.predict(*pair, unnorm_key=KEY)
        assert list(alone.token_ids) == list(together.token_ids)
        np.testing.assert_allclose(alone.logprobs, together.logprobs, atol=1e-5)


async def test_a_seed_repeats_its_action_in_any_company(client: AsyncPolicyClient) -> None:
    images = frames(4)
    pairs = list(zip(images, INSTRUCTIONS, strict=True))
    seeds = [1, 2, 3, 2**64 - 1]

    async def sample(seeds: list[int] | None) -> list[list[int]]:
        actions = await client.predict_batch(pairs, temperature=1.5, seeds=seeds, unnorm_key=KEY)
        return [list(action.token_ids) for action in actions]

    first = await sample(seeds)
    assert await sample(seeds) == first
    alone = await client.predict(*pairs[1], temperature=1.5, seed=2, unnorm_key=KEY)
    assert list(alone.token_ids) == first[1]
    assert await sample([5, 6, 7, 8]) != first
    assert await sample(None) != await sample(None)


@pytest.mark.parametrize("temperature", [0.01, 2.0])
async def test_temperatures_up_to_their_bounds(
    client: AsyncPolicyClient, temperature: float
) -> None:
    action = await client.predict(
        frames(1)[0], INSTRUCTIONS[0], temperature=temperature, seed=1, unnorm_key=KEY
    )
    assert len(action.token_ids) == 7


async def test_an_image_of_the_models_size_is_used_as_it_is(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path
) -> None:
    await back_to_base(stub, checkpoint)
    prepared = prepare_image(decode_image(frames(1)[0]), 56, False)
    buffer = io.BytesIO()
    Image.fromarray(prepared).save(buffer, "PNG")
    png = buffer.getvalue()
    action = await client.predict(png, INSTRUCTIONS[0], unnorm_key=KEY)
    assert Reference(checkpoint).check([png], INSTRUCTIONS[:1], [action], 0.0) < 1e-4


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = pb.Observation(image=frames(1)[0], instruction="turn on the stove")
WRONG_REQUESTS = {
    "no observation": (pb.PredictActionsRequest(), "observations"),
    "too many": (pb.PredictActionsRequest(observations=[GOOD] * 17), "observations"),
    "empty image": (
        pb.PredictActionsRequest(observations=[GOOD, pb.Observation(instruction="a")]),
        "observations[1].image",
    ),
    "not an image": (
        pb.PredictActionsRequest(observations=[pb.Observation(image=b"GIF89a", instruction="a")]),
        "observations[0].image",
    ),
    "cut image": (
        pb.PredictActionsRequest(
            observations=[pb.Observation(image=GOOD.image[:-400], instruction="a")]
        ),
        "observations[0].image",
    ),
    "image bomb": (
        pb.PredictActionsRequest(
            observations=[pb.Observation(image=_png(30000, 30000), instruction="a")]
        ),
        "observations[0].image",
    ),
    "no instruction": (
        pb.PredictActionsRequest(observations=[pb.Observation(image=GOOD.image, instruction=" ")]),
        "observations[0].instruction",
    ),
    "long instruction": (
        pb.PredictActionsRequest(
            observations=[pb.Observation(image=GOOD.image, instruction="x" * 1001)]
        ),
        "observations[0].instruction",
    ),
    "many tokens": (
        pb.PredictActionsRequest(
            observations=[pb.Observation(image=GOOD.image, instruction="\u20ac" * 900)]
        ),
        "observations[0].instruction",
    ),
    "negative temperature": (
        pb.PredictActionsRequest(observations=[GOOD], temperature=-1.0),
        "temperature",
    ),
    "nan temperature": (
        pb.PredictActionsRequest(observations=[GOOD], temperature=float("nan")),
        "temperature",
    ),
    "infinite temperature": (
        pb.PredictActionsRequest(observations=[GOOD], temperature=float("inf")),
        "temperature",
    ),
    "temperature that the engine would raise": (
        pb.PredictActionsRequest(observations=[GOOD], temperature=0.001),
        "temperature",
    ),
    "temperature that the engine would refuse": (
        pb.PredictActionsRequest(observations=[GOOD], temperature=2.001),
        "temperature",
    ),
    "unknown key": (
        pb.PredictActionsRequest(observations=[GOOD], unnorm_key="bridge"),
        "unnorm_key",
    ),
}


@pytest.mark.parametrize("case", WRONG_REQUESTS)
async def test_wrong_requests_are_refused_field_by_field(stub: Stub, case: str) -> None:
    request, field = WRONG_REQUESTS[case]
    if case != "unknown key":
        request.unnorm_key = KEY
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.PredictActions(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = dict(errors.violations(refused.value))
    assert list(violations) == [field]
    if case == "unknown key":
        assert KEY in violations[field]


async def test_all_that_is_wrong_is_named_at_once(stub: Stub) -> None:
    request = pb.PredictActionsRequest(
        observations=[pb.Observation(), GOOD], temperature=-1.0, unnorm_key="bridge"
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.PredictActions(request)
    fields = [field for field, _ in errors.violations(refused.value)]
    assert fields == [
        "temperature",
        "unnorm_key",
        "observations[0].image",
        "observations[0].instruction",
    ]
