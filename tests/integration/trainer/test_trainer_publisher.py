"""Every replica serves what was published, or the run stops and says which doesn't."""

import asyncio
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.integration.trainer.stand_ins import StandInPolicy, serving  # noqa: E402
from vlarl.config import ChannelConfig  # noqa: E402
from vlarl.launch.supervisor import free_address  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.lora import lora_layers  # noqa: E402
from vlarl.weights.adapter import Adapter  # noqa: E402
from vlarl.weights.checkpoint import base_digest  # noqa: E402
from vlarl_trainer.publisher import Publisher, PublishError  # noqa: E402

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


async def test_other_merged_weights_stop_the_run(checkpoint: Path) -> None:
    policy = StandInPolicy(checkpoint)
    policy.wrong_digest = True
    async with serving(policy) as address:
        with pytest.raises(PublishError, match=f"{address} merged version 1 into other weights"):
            await publisher(checkpoint, address).publish(adapter(checkpoint, 1), takeover=False)
        lenient = publisher(checkpoint, address, digests="report")
        assert (await lenient.publish(adapter(checkpoint, 2), takeover=False)).replicas == 1
