"""Every replica serves what was published, or the run stops and says which doesn't."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

torch = pytest.importorskip("torch")

from tests.integration.trainer.stand_ins import StandInPolicy, serving  # noqa: E402
from vlarl.config import ChannelConfig  # noqa: E402
from vlarl.launch.supervisor import free_address  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.lora import lora_layers  # noqa: E402
from vlarl.weights.adapter import Adapter  # noqa: E402
from vlarl.weights.checkpoint import base_digest  # noqa: E402
from vlarl.weights.merge import Checksums, checksum, merged_tensors  # noqa: E402
from vlarl_trainer.publisher import Publisher, PublishError, passes  # noqa: E402

pytestmark = pytest.mark.torch


def adapter(checkpoint: Path, version: int) -> Adapter:
    generator = torch.Generator().manual_seed(version)
    factors = {
        name: (
            torch.randn(2, into, generator=generator),
            torch.randn(out, 2, generator=generator),
        )
        for name, (out, into) in lora_layers(OpenVLAConfig.from_directory(checkpoint)).items()
    }
    return Adapter("run", version, base_digest(checkpoint), 0.5, factors)


def publisher(checkpoint: Path, addresses: str, digests: str = "require") -> Publisher:
    return Publisher(addresses, ChannelConfig(), checkpoint, digests=digests, timeout_seconds=30.0)


async def test_all_replicas_serve_the_version_also_one_that_starts_late(checkpoint: Path) -> None:
    early, late = StandInPolicy(checkpoint), StandInPolicy(checkpoint)
    late_address = free_address()
    async with serving(early) as early_address:
        publishing = asyncio.create_task(
            publisher(checkpoint, f"{early_address},{late_address}").publish(
                adapter(checkpoint, 1), takeover=True
            )
        )
        await asyncio.wait([publishing], timeout=0.5)
        assert not publishing.done(), "the version advanced without all replicas"
        async with serving(late, late_address):
            report = await publishing
    assert report.replicas == 2
    assert (early.version, late.version) == (1, 1)


async def test_a_replica_that_has_left_the_name_is_not_waited_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StandInPolicy(checkpoint)
    leaving = free_address()
    async with serving(policy) as address:
        named = [address, leaving]
        # What the name's lookup says; all else is as it is.
        monkeypatch.setattr("vlarl_trainer.publisher.replica_addresses", lambda _: list(named))
        publishing = asyncio.create_task(
            publisher(checkpoint, "dns:///policy:1").publish(adapter(checkpoint, 1), takeover=True)
        )
        await asyncio.wait([publishing], timeout=0.5)
        assert not publishing.done(), "the version advanced without all replicas"
        named.remove(leaving)
        report = await publishing
    assert report.replicas == 1
    assert policy.version == 1


def checked(checkpoint: Path, version: int) -> tuple[Adapter, Checksums]:
    """An adapter of which every layer is checked, and what is expected."""
    made = adapter(checkpoint, version)
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    merged = merged_tensors(checkpoint, layers, made.factors, made.scaling, torch.float32)
    sums = {key.removesuffix(".weight"): checksum(weight) for key, weight in merged}
    return replace(made, checked_layers=list(sums)), Checksums("float32", sums)


@pytest.mark.parametrize("known", [True, False], ids=["the trainer's", "from the checkpoint"])
async def test_other_merged_weights_stop_the_run(checkpoint: Path, known: bool) -> None:
    policy = StandInPolicy(checkpoint)
    made, expected = checked(checkpoint, 1)
    later, later_expected = checked(checkpoint, 2)
    async with serving(policy) as address:
        strict = publisher(checkpoint, address)
        await strict.publish(made, takeover=False, expected=expected if known else None)
        policy.wrong_weights = True
        with pytest.raises(PublishError, match=f"{address} merged version 2 into other weights"):
            await strict.publish(later, takeover=False, expected=later_expected if known else None)
        lenient = publisher(checkpoint, address, digests="report")
        assert (await lenient.publish(later, takeover=False)).replicas == 1


async def test_weights_made_of_something_else_stop_the_run(checkpoint: Path) -> None:
    policy = StandInPolicy(checkpoint)
    policy.wrong_digest = True
    async with serving(policy) as address:
        lenient = publisher(checkpoint, address, digests="report")
        with pytest.raises(PublishError, match=f"{address} made version 1 of other weights"):
            await lenient.publish(adapter(checkpoint, 1), takeover=False)


async def test_weights_of_another_type_are_not_compared(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = checked(checkpoint, 1)
    other = Checksums("float16", dict.fromkeys(made.checked_layers, 1))
    async with serving(StandInPolicy(checkpoint)) as address:
        strict = publisher(checkpoint, address)
        await strict.publish(made, takeover=False, expected=other)
    assert "hold float32 and the trainer float16" in caplog.text


@pytest.mark.parametrize(
    ("code", "details", "again"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", True),
        # Seen in 11 of 200 calls that were answered before the client had written all.
        (grpc.StatusCode.INTERNAL, "Internal error from Core", True),
        (grpc.StatusCode.INTERNAL, "version 3 couldn't be merged", False),
        (grpc.StatusCode.FAILED_PRECONDITION, "version 2 is older than 3, which serves", False),
    ],
)
def test_a_failed_write_hides_the_answer_and_is_tried_again(
    code: grpc.StatusCode, details: str, again: bool
) -> None:
    assert passes(AioRpcError(code, Metadata(), Metadata(), details=details)) is again
