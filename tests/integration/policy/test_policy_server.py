"""The policy server's answers against plain torch, and what it refuses at the door."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

from tests.integration.policy.policy_harness import (
    INSTRUCTIONS,
    KEY,
    Reference,
    completed,
    frames,
)
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.images import decode_image, prepare_image
from vlarl.models.registry import policy_spec
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.rpc import errors
from vlarl.weights.checkpoint import base_digest

if TYPE_CHECKING:
    from tests.integration.policy.conftest import Observe
    from vlarl.clients.policy import Action, Observation
    from vlarl.policy.v1.policy_pb2_grpc import PolicyServiceAsyncStub as Stub

pytestmark = [pytest.mark.torch, pytest.mark.slow]


async def back_to_base(stub: Stub, checkpoint: Path) -> None:
    header = pb.AdapterHeader(
        run_id="tests", base_digest=base_digest(checkpoint), dtype="float32", takeover=True
    )
    await stub.UpdateWeights(iter([pb.UpdateWeightsRequest(header=header)]))


async def ask(
    client: AsyncPolicyClient,
    observation: Observation,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    center_crop: bool | None = None,
) -> Action:
    """One observation's answer."""
    (action,) = await client.predict_batch(
        [observation],
        temperature=temperature,
        seeds=seeds,
        unnorm_key=KEY,
        center_crop=center_crop,
    )
    return action


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
    chunked = policy.family == "openvla_oft"
    assert policy.chunk == (8 if chunked else 1)
    wrist = ["robot0_eye_in_hand"] if chunked else []
    assert list(policy.cameras) == ["agentview", *wrist]
    assert policy.proprio == (8 if chunked else 0)


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
        reference.observations(images, instructions),
        temperature=temperature,
        unnorm_key=KEY,
        center_crop=center_crop,
    )
    gap = reference.check(images, instructions, actions, temperature, center_crop)
    assert gap < 1e-4

    statistics, spec = reference.spec.statistics(KEY), reference.spec
    decoded = reference.config.action_tokenizer.decode(
        np.array([action.token_ids for action in actions])
    )
    values = np.array([action.values for action in actions])
    steps = (8, 7) if spec.chunk > 1 else (7,)
    assert values.shape == (8, *steps)
    expected = statistics.unnormalize(decoded.reshape(values.shape))
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert {action.horizon for action in actions} == {spec.chunk}
    assert {action.policy_version for action in actions} == {0}


async def test_the_crop_of_a_request_matters(client: AsyncPolicyClient, observe: Observe) -> None:
    (seen,) = observe(frames(1), INSTRUCTIONS[:1])
    plain = await ask(client, seen)
    cropped = await ask(client, seen, center_crop=True)
    assert list(plain.logprobs) != list(cropped.logprobs)


async def test_a_batch_answers_what_single_requests_do(
    client: AsyncPolicyClient, observe: Observe
) -> None:
    seen = observe(frames(4), INSTRUCTIONS)
    batch = await client.predict_batch(seen, unnorm_key=KEY)
    for one, together in zip(seen, batch, strict=True):
        alone = await ask(client, one)
        assert list(alone.token_ids) == list(together.token_ids)
        np.testing.assert_allclose(alone.logprobs, together.logprobs, atol=1e-5)


async def test_a_seed_repeats_its_action_in_any_company(
    client: AsyncPolicyClient, observe: Observe
) -> None:
    seen = observe(frames(4), INSTRUCTIONS)
    seeds = [1, 2, 3, 2**64 - 1]

    async def sample(seeds: list[int] | None) -> list[list[int]]:
        actions = await client.predict_batch(seen, temperature=1.5, seeds=seeds, unnorm_key=KEY)
        return [list(action.token_ids) for action in actions]

    first = await sample(seeds)
    assert await sample(seeds) == first
    alone = await ask(client, seen[1], temperature=1.5, seeds=[2])
    assert list(alone.token_ids) == first[1]
    assert await sample([5, 6, 7, 8]) != first
    assert await sample(None) != await sample(None)


@pytest.mark.parametrize("temperature", [0.01, 2.0])
async def test_temperatures_up_to_their_bounds(
    client: AsyncPolicyClient, observe: Observe, temperature: float
) -> None:
    (seen,) = observe(frames(1), INSTRUCTIONS[:1])
    action = await ask(client, seen, temperature=temperature, seeds=[1])
    assert len(action.token_ids) == 7 * action.horizon


async def test_an_image_of_the_models_size_is_used_as_it_is(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path
) -> None:
    await back_to_base(stub, checkpoint)
    prepared = prepare_image(decode_image(frames(1)[0]), 56, False)
    buffer = io.BytesIO()
    Image.fromarray(prepared).save(buffer, "PNG")
    png = buffer.getvalue()
    reference = Reference(checkpoint)
    action = await ask(client, reference.observations([png], INSTRUCTIONS[:1])[0])
    assert reference.check([png], INSTRUCTIONS[:1], [action], 0.0) < 1e-4


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
async def test_wrong_requests_are_refused_field_by_field(
    stub: Stub, checkpoint: Path, case: str
) -> None:
    request, field = WRONG_REQUESTS[case]
    request = completed(policy_spec(checkpoint), request)
    if case != "unknown key":
        request.unnorm_key = KEY
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.PredictActions(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = dict(errors.violations(refused.value))
    assert list(violations) == [field]
    if case == "unknown key":
        assert KEY in violations[field]


async def test_all_that_is_wrong_is_named_at_once(stub: Stub, checkpoint: Path) -> None:
    request = pb.PredictActionsRequest(
        observations=[pb.Observation(), GOOD], temperature=-1.0, unnorm_key="bridge"
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.PredictActions(completed(policy_spec(checkpoint), request))
    fields = [field for field, _ in errors.violations(refused.value)]
    assert fields == [
        "temperature",
        "unnorm_key",
        "observations[0].image",
        "observations[0].instruction",
    ]
