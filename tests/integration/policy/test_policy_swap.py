"""Weights change between two actions, and nothing that goes wrong on the way changes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

torch = pytest.importorskip("torch")

from tests.integration.policy.policy_harness import (  # noqa: E402
    INSTRUCTIONS,
    KEY,
    PolicyProcess,
    Reference,
    frames,
    random_adapter,
)
from vlarl.clients.policy import Action, AsyncPolicyClient  # noqa: E402
from vlarl.policy.v1 import policy_pb2 as pb  # noqa: E402
from vlarl.weights import adapter as wire  # noqa: E402
from vlarl.weights.checkpoint import base_digest  # noqa: E402

if TYPE_CHECKING:
    from tests.integration.policy.conftest import Observe
    from vlarl.policy.v1.policy_pb2_grpc import PolicyServiceAsyncStub as Stub

pytestmark = [pytest.mark.torch, pytest.mark.slow]

IMAGES = frames(4)


async def publish(
    stub: Stub, adapter: wire.Adapter, *, takeover: bool = False
) -> pb.UpdateWeightsResponse:
    return await stub.UpdateWeights(wire.update_requests(adapter, takeover=takeover))


async def gap_now(client: AsyncPolicyClient, reference: Reference, version: int) -> float:
    """The largest difference at all temperatures; every action must be of that version."""
    gap, seen = 0.0, reference.observations(IMAGES, INSTRUCTIONS)
    for temperature in (0.0, 1.0, 1.5):
        actions = await client.predict_batch(seen, temperature=temperature, unnorm_key=KEY)
        assert {action.policy_version for action in actions} == {version}
        gap = max(gap, reference.check(IMAGES, INSTRUCTIONS, actions, temperature))
    return gap


async def test_swapped_weights_serve_and_both_sides_agree(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path
) -> None:
    narrow = random_adapter(checkpoint, 3)
    # Only some layers, one of them fused with two others in the engine: the rest must go back.
    picked = ("layers.0.self_attn.k_proj", "layers.1.mlp.up_proj", "featurizer.blocks.0.attn.proj")
    narrow = replace(
        narrow, factors={k: v for k, v in narrow.factors.items() if k.endswith(picked)}
    )
    assert len(narrow.factors) == 4
    bf16 = random_adapter(checkpoint, 4)
    bf16 = replace(
        bf16, factors={k: (a.bfloat16(), b.bfloat16()) for k, (a, b) in bf16.factors.items()}
    )
    adapters = [random_adapter(checkpoint, 1), random_adapter(checkpoint, 2), narrow, bf16]
    adapters = [replace(one, checked_layers=list(one.factors)[::2]) for one in adapters]
    for adapter in adapters:
        answer = await publish(stub, adapter, takeover=adapter.version == 1)
        reference = Reference(checkpoint, adapter)
        assert answer.policy_version == adapter.version
        assert answer.merged_digest == reference.merged_digest
        # The same numbers as here, to the bit.
        checked = {layer: reference.checksums[layer] for layer in adapter.checked_layers}
        assert dict(answer.checksums) == checked
        assert answer.bytes == sum(t.nbytes for _, _, t in adapter.tensors())
        assert 0 < answer.pause_seconds <= answer.seconds
        assert not answer.already_applied
        policy = await client.get_policy()
        assert (policy.run_id, policy.policy_version) == ("run", adapter.version)
        assert policy.merged_digest == reference.merged_digest
        assert await gap_now(client, reference, adapter.version) < 1e-4
    # Weights that moved so little that any would do would prove nothing.
    base = Reference(checkpoint)
    seen = base.observations(IMAGES, INSTRUCTIONS)
    actions = await client.predict_batch(seen, temperature=1.0, unnorm_key=KEY)
    assert base.check(IMAGES, INSTRUCTIONS, actions, 1.0) > 0.1


async def test_versions_of_a_run_only_rise(stub: Stub, checkpoint: Path) -> None:
    async def refused(adapter: wire.Adapter) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await publish(stub, adapter)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        policy = await stub.GetPolicy(pb.GetPolicyRequest())
        assert (policy.run_id, policy.policy_version) == ("run", 7)
        return str(error.value.details())

    seventh = random_adapter(checkpoint, 7)
    seventh = replace(seventh, checked_layers=list(seventh.factors)[:2])
    first = await publish(stub, seventh, takeover=True)
    again = await publish(stub, seventh)
    assert again.already_applied
    assert again.merged_digest == first.merged_digest
    assert len(first.checksums) == 2
    assert again.checksums == first.checksums
    assert "already" in await refused(random_adapter(checkpoint, 7, seed=8))
    assert "older" in await refused(random_adapter(checkpoint, 6))
    assert "takeover" in await refused(random_adapter(checkpoint, 8, run="other"))

    older = await publish(stub, random_adapter(checkpoint, 5), takeover=True)
    assert older.policy_version == 5
    other = await publish(stub, random_adapter(checkpoint, 3, run="other"), takeover=True)
    assert other.policy_version == 3


async def test_version_zero_brings_the_base_back(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path
) -> None:
    await publish(stub, random_adapter(checkpoint, 1), takeover=True)
    base = wire.Adapter("run", 0, base_digest(checkpoint), 0.0, {})
    answer = await publish(stub, base, takeover=True)
    assert (answer.policy_version, answer.merged_digest) == (0, "")
    assert (await client.get_policy()).run_id == ""
    assert await gap_now(client, Reference(checkpoint), 0) < 1e-4


BAD_STREAMS = {
    "no header": grpc.StatusCode.INVALID_ARGUMENT,
    "nothing": grpc.StatusCode.INVALID_ARGUMENT,
    "two headers": grpc.StatusCode.INVALID_ARGUMENT,
    "checksum": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown layer": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown checked layer": grpc.StatusCode.INVALID_ARGUMENT,
    "wrong shape": grpc.StatusCode.INVALID_ARGUMENT,
    "missing factor": grpc.StatusCode.INVALID_ARGUMENT,
    "not finite": grpc.StatusCode.INVALID_ARGUMENT,
    "ends early": grpc.StatusCode.INVALID_ARGUMENT,
    "too large": grpc.StatusCode.INVALID_ARGUMENT,
    "other base": grpc.StatusCode.FAILED_PRECONDITION,
    "older": grpc.StatusCode.FAILED_PRECONDITION,
}


def bad_stream(case: str, checkpoint: Path) -> Iterator[pb.UpdateWeightsRequest]:
    adapter = random_adapter(checkpoint, 9 if case == "older" else 11)
    layer = next(iter(adapter.factors))
    if case == "not finite":
        adapter.factors[layer][0][0, 0] = float("nan")
    requests = list(wire.update_requests(adapter))
    header = requests[0].header
    if case == "no header":
        del requests[0]
    elif case == "nothing":
        requests.clear()
    elif case == "two headers":
        requests[1] = requests[0]
    elif case == "checksum":
        header.tensors[-1].sha256 = bytes(32)
    elif case == "unknown layer":
        header.tensors[0].layer += "x"
    elif case == "unknown checked layer":
        header.checked_layers.append(layer + "x")
    elif case == "wrong shape":
        header.tensors[0].shape[1] += 1
    elif case == "missing factor":
        del header.tensors[0]
    elif case == "ends early":
        del requests[-1]
    elif case == "too large":
        header.tensors[0].shape[0] = 1 << 40
    elif case == "other base":
        header.base_digest = "0" * 64
    yield from requests


@pytest.mark.parametrize("case", BAD_STREAMS)
async def test_a_bad_stream_changes_nothing(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path, case: str
) -> None:
    adapter = random_adapter(checkpoint, 10)
    await publish(stub, adapter, takeover=True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.UpdateWeights(bad_stream(case, checkpoint))
    assert refused.value.code() is BAD_STREAMS[case]
    assert refused.value.details()
    assert (await client.get_policy()).policy_version == 10
    assert await gap_now(client, Reference(checkpoint, adapter), 10) < 1e-4


async def test_a_client_that_leaves_half_way_changes_nothing(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path
) -> None:
    adapter = random_adapter(checkpoint, 10)
    await publish(stub, adapter, takeover=True)
    requests = list(wire.update_requests(random_adapter(checkpoint, 11)))
    call = stub.UpdateWeights()
    for request in requests[: len(requests) // 2]:
        await call.write(request)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await gap_now(client, Reference(checkpoint, adapter), 10) < 1e-4
    # And the server takes the next one.
    assert (await publish(stub, random_adapter(checkpoint, 11))).policy_version == 11


async def test_every_action_is_of_one_version_while_20_swaps_pass(
    client: AsyncPolicyClient,
    stub: Stub,
    server: PolicyProcess,
    checkpoint: Path,
    observe: Observe,
) -> None:
    seen = observe(IMAGES, INSTRUCTIONS)
    adapters = [random_adapter(checkpoint, version) for version in range(1, 21)]
    await publish(stub, adapters[0], takeover=True)
    done = asyncio.Event()
    answered: list[tuple[int, float, Action]] = []

    async def act(index: int) -> None:
        temperature = (0.0, 1.0, 1.5)[index % 3]
        while not done.is_set():
            (action,) = await client.predict_batch(
                [seen[index % 4]], temperature=temperature, unnorm_key=KEY
            )
            answered.append((index % 4, temperature, action))

    clients = [asyncio.create_task(act(index)) for index in range(6)]
    for adapter in adapters:
        await publish(stub, adapter)
        before = len(answered)  # from here on: while weights are merged the old ones still act
        while len(answered) < before + 12:
            await asyncio.sleep(0.01)
    done.set()
    await asyncio.gather(*clients)  # a failed request would raise here

    # Those that were half done began again: no swap waited for them.
    assert server.metric("vlarl_policy_actions_interrupted_total") > 0
    gap = 0.0
    assert {action.policy_version for _, _, action in answered} == set(range(1, 21))
    for adapter in adapters:
        reference = Reference(checkpoint, adapter)
        for pair, temperature, action in answered:
            if action.policy_version == adapter.version:
                gap = max(
                    gap,
                    reference.check([IMAGES[pair]], [INSTRUCTIONS[pair]], [action], temperature),
                )
    print(f"{len(answered)} actions over 20 versions, largest log-prob gap {gap:.2e}")
    assert gap < 1e-4


async def test_two_publishers_at_once_leave_one_version(
    client: AsyncPolicyClient, stub: Stub, checkpoint: Path
) -> None:
    await publish(stub, random_adapter(checkpoint, 1), takeover=True)
    newer = random_adapter(checkpoint, 3)
    results = await asyncio.gather(
        publish(stub, random_adapter(checkpoint, 2)),
        publish(stub, newer),
        publish(stub, newer),
        return_exceptions=True,
    )
    assert (await client.get_policy()).policy_version == 3
    assert await gap_now(client, Reference(checkpoint, newer), 3) < 1e-4
    answers = [one for one in results if isinstance(one, pb.UpdateWeightsResponse)]
    applied = [one for one in answers if not one.already_applied and one.policy_version == 3]
    assert len(applied) == 1


async def test_metrics_count_what_happened(
    client: AsyncPolicyClient,
    stub: Stub,
    server: PolicyProcess,
    checkpoint: Path,
    observe: Observe,
) -> None:
    def metric(name: str, **labels: str) -> float:
        return server.metric(f"vlarl_policy_{name}", **labels)

    names = ("actions_total", "request_seconds_count", "batch_size_count", "swaps_total")
    names += ("swap_seconds_count", "pause_seconds_count", "swap_bytes_total")
    before = {name: metric(name) for name in names}
    refused = metric("failures_total", method="UpdateWeights", cause="base")
    invalid = metric("failures_total", method="PredictActions", cause="invalid")

    await publish(stub, random_adapter(checkpoint, 40), takeover=True)
    answer = await publish(stub, random_adapter(checkpoint, 41))
    await client.predict_batch(observe(IMAGES, INSTRUCTIONS), unnorm_key=KEY)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.UpdateWeights(bad_stream("other base", checkpoint))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.PredictActions(pb.PredictActionsRequest())

    rises = {name: metric(name) - before[name] for name in names}
    assert rises == {
        "actions_total": 4,
        "request_seconds_count": 1,
        "batch_size_count": 4,
        "swaps_total": 2,
        "swap_seconds_count": 2,
        "pause_seconds_count": 2,
        "swap_bytes_total": 2 * answer.bytes,
    }
    assert metric("weights_version") == 41
    assert metric("actions_running") == metric("actions_waiting") == 0
    assert metric("failures_total", method="UpdateWeights", cause="base") == refused + 1
    assert metric("failures_total", method="PredictActions", cause="invalid") == invalid + 1
