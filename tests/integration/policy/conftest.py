"""A family's checkpoint and running server, for all tests of the policy server.

Those that ask the server run for each family, one family after the other.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vlarl.clients.policy import AsyncPolicyClient, Observation
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.channel import open_channel, wait_until_serving

if TYPE_CHECKING:
    from tests.integration.policy.policy_harness import PolicyProcess


FAMILIES = ("openvla", "openvla_oft")

Observe = Callable[[Sequence[bytes], Sequence[str]], list[Observation]]
"""From the main camera's images and instructions to what the policy has to be shown."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each family's checkpoint for what asks the shared server or shows a policy what it needs,
    OpenVLA's for the rest.
    """
    if "checkpoint" in metafunc.fixturenames:
        for_each = {"server", "observe"}.intersection(metafunc.fixturenames)
        families = FAMILIES if for_each else FAMILIES[:1]
        metafunc.parametrize("checkpoint", families, indirect=True, scope="session")


@pytest.fixture(scope="session")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint: 56x56 pixels, 16 tokens an image."""
    from tests.tiny_oft import make_tiny_oft
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    directory = tmp_path_factory.mktemp("policy") / "tiny"
    if request.param == "openvla":
        make_tiny_checkpoint(directory, seed=5, image_size=56)
    else:
        make_tiny_oft(directory, seed=5, image_size=56)
    return directory


@pytest.fixture(scope="session")
def observe(checkpoint: Path) -> Observe:
    """What the checkpoint's policy has to be shown."""
    from tests.integration.policy.policy_harness import observations
    from vlarl.models.registry import policy_spec

    return functools.partial(observations, policy_spec(checkpoint))


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
