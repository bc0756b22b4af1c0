"""One checkpoint and one running server for all tests of the policy server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vlarl.clients.policy import AsyncPolicyClient
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.channel import open_channel, wait_until_serving

if TYPE_CHECKING:
    from tests.integration.policy.policy_harness import PolicyProcess


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint: 56x56 pixels, 16 image tokens."""
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    directory = tmp_path_factory.mktemp("policy") / "tiny"
    make_tiny_checkpoint(directory, seed=5, image_size=56)
    return directory


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyProcess]:
    """A server that is serving."""
    from tests.integration.policy.policy_harness import PolicyProcess

    started = PolicyProcess(checkpoint, tmp_path_factory.mktemp("server"))
    yield started
    assert started.stop() == 0


@pytest.fixture
async def stub(server: PolicyProcess) -> AsyncIterator[policy_pb2_grpc.PolicyServiceAsyncStub]:
    """The service's bare calls."""
    from tests.integration.policy.policy_harness import START_SECONDS

    async with open_channel(server.address) as channel:
        await wait_until_serving(channel, "vlarl.policy.v1.PolicyService", START_SECONDS)
        yield policy_pb2_grpc.PolicyServiceStub(channel)


@pytest.fixture
async def client(
    server: PolicyProcess, stub: policy_pb2_grpc.PolicyServiceAsyncStub
) -> AsyncIterator[AsyncPolicyClient]:
    """The SDK's client of the serving server."""
    async with AsyncPolicyClient(server.address, timeout_seconds=60) as opened:
        yield opened
