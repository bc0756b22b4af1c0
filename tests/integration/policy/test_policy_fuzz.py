"""Thousands of damaged requests: each is answered, with the right code, and the server lives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from tests.fuzzing import bombard, bombard_stream, damaged, fuzz_requests, large, said, wild
from tests.integration.policy.policy_harness import KEY, PolicyProcess, completed, frames
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.models.registry import policy_spec
from vlarl.models.spec import PolicySpec
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.channel import open_channel

if TYPE_CHECKING:
    from tests.integration.policy.conftest import Observe

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SERVICE = "/vlarl.policy.v1.PolicyService"
REQUESTS = fuzz_requests(800)
"""CI's share; 10,000 were sent for THREATS.md."""
STREAMS = REQUESTS // 10
CODE = grpc.StatusCode


async def test_damaged_requests_for_actions(
    server: PolicyProcess,
    stub: policy_pb2_grpc.PolicyServiceAsyncStub,
    client: AsyncPolicyClient,
    checkpoint: Path,
    observe: Observe,
) -> None:
    spec, image = policy_spec(checkpoint), frames(1)[0]
    seen = observe([image], ["turn on the stove"])
    observation = pb.Observation(image=image, instruction="turn on the stove", seed=3)
    good = [
        pb.PredictActionsRequest(observations=[observation] * count, unnorm_key=KEY, temperature=t)
        for count, t in ((1, 0.0), (2, 1.0))
    ]
    # Without the image, what is damaged is the message and not a pixel.
    slight = pb.PredictActionsRequest(
        observations=[pb.Observation(image=b"\xff\xd8", instruction="a")], unnorm_key=KEY
    )
    requests = [completed(spec, one) for one in (*good, slight, slight, slight)]
    sources = [one.SerializeToString() for one in requests]
    rng = np.random.default_rng(11)
    payloads = [damaged(rng, sources) for _ in range(REQUESTS * 3 // 4)]
    payloads += [_peculiar(rng, spec, image) for _ in range(REQUESTS // 4)]
    slight.observations[0].instruction = "turn on the stove " * 2**20
    payloads += [
        large(pb.PredictActionsRequest, "observations", pb.Observation()),
        large(pb.PredictActionsRequest, "unnorm_key", "é"),
        slight.SerializeToString(),
    ]
    (before,) = await client.predict_batch(seen, unnorm_key=KEY)
    async with open_channel(server.address) as channel:
        codes = await bombard(channel, f"{SERVICE}/PredictActions", payloads)
    said("PredictActions", codes.items())
    # A damaged pixel is a picture still.
    assert set(codes) <= {CODE.INVALID_ARGUMENT, CODE.OK}, codes
    assert codes[CODE.INVALID_ARGUMENT] > REQUESTS / 2, codes
    (after,) = await client.predict_batch(seen, unnorm_key=KEY)
    assert after.token_ids.tolist() == before.token_ids.tolist()


def _peculiar(rng: np.random.Generator, spec: PolicySpec, image: bytes) -> bytes:
    """A request whose pictures are some, and the rest as the types allow."""
    request = wild(rng, pb.PredictActionsRequest, (KEY, "turn on the stove"))
    for observation in request.observations:
        observation.image = image
    data: bytes = completed(spec, request).SerializeToString()
    return data


async def test_damaged_weights(
    server: PolicyProcess, stub: policy_pb2_grpc.PolicyServiceAsyncStub
) -> None:
    header = pb.AdapterHeader(run_id="fuzz", version=10**6, dtype="float32", scaling=1.0)
    header.tensors.add(layer="language_model.model.layers.0.self_attn.q_proj", shape=[4, 128])
    parts = [
        pb.UpdateWeightsRequest(header=header).SerializeToString(),
        pb.UpdateWeightsRequest(chunk=pb.AdapterChunk(data=bytes(2048))).SerializeToString(),
    ]
    rng = np.random.default_rng(12)
    streams = [
        [damaged(rng, parts) if rng.random() < 0.7 else parts[place % 2] for place in range(3)]
        for _ in range(STREAMS)
    ]
    streams.append([large(pb.UpdateWeightsRequest, "header.tensors", pb.AdapterTensor())])
    before = await stub.GetPolicy(pb.GetPolicyRequest())
    async with open_channel(server.address) as channel:
        codes = await bombard_stream(channel, f"{SERVICE}/UpdateWeights", streams, answers=False)
    said("UpdateWeights", codes.items())
    assert set(codes) <= {CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION}, codes
    after = await stub.GetPolicy(pb.GetPolicyRequest())
    assert (after.run_id, after.policy_version) == (before.run_id, before.policy_version)
