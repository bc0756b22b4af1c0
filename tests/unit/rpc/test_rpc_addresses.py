"""Addresses and the retry policy, as far as they can be judged without a connection."""

from __future__ import annotations

import pytest

from vlarl.env.v1 import env_pb2
from vlarl.policy.v1 import policy_pb2
from vlarl.reward.v1 import reward_pb2
from vlarl.rpc.address import ListenError, split_address
from vlarl.rpc.channel import IDEMPOTENT, grpc_target, replica_addresses
from vlarl.rpc.errors import InvalidRequest
from vlarl.trainer.v1 import trainer_pb2

CONTRACT = {
    service.full_name: {method.name for method in service.methods}
    for file in (policy_pb2, env_pb2, reward_pb2, trainer_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}


def test_every_retried_method_exists_in_the_contract() -> None:
    for service, methods in IDEMPOTENT.items():
        assert set(methods) <= CONTRACT[service]
    retried = {method for methods in IDEMPOTENT.values() for method in methods}
    assert not retried & {"UpdateWeights", "Interact", "Checkpoint"}


def test_split_address() -> None:
    assert split_address("localhost:5000") == ("localhost", 5000)
    assert split_address("[::1]:0") == ("[::1]", 0)


@pytest.mark.parametrize("address", ["localhost", ":5000", "localhost:", "h:http", "h:70000", ""])
def test_a_malformed_address_is_named(address: str) -> None:
    with pytest.raises(ListenError, match="is not HOST:PORT"):
        split_address(address)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("policy:1", "policy:1"),
        ("dns:///policy:1", "dns:///policy:1"),
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("127.0.0.1:1, 127.0.0.2:2,", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
        ("127.0.0.1:1,", "127.0.0.1:1"),
        ("unix:///run/policy.sock", "unix:///run/policy.sock"),
        ("ipv4:127.0.0.1:1", "ipv4:127.0.0.1:1"),
        ("dns://8.8.8.8/policy:1", "dns://8.8.8.8/policy:1"),
    ],
)
def test_grpc_target(address: str, target: str) -> None:
    assert grpc_target(address) == target


@pytest.mark.parametrize("address", ["", " , ", "[::1]:1,127.0.0.1:2"])
def test_an_address_that_means_nothing_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"no address|mix IPv4 and IPv6"):
        grpc_target(address)


@pytest.mark.parametrize("address", ["policy", "dns:///policy", "http://policy:1", "policy:"])
def test_an_address_whose_port_grpc_would_guess_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        grpc_target(address)


def test_replica_addresses() -> None:
    assert replica_addresses("a:1") == ["a:1"]
    assert replica_addresses("a:1, b:2") == ["a:1", "b:2"]
    assert "127.0.0.1:7" in replica_addresses("dns:///localhost:7")


def test_long_violations_are_cut_to_what_a_header_carries() -> None:
    error = InvalidRequest([(f"observations[{i}]", "x" * 10_000) for i in range(100)])
    assert len(error.message) <= 500
    assert sum(detail.ByteSize() for detail in error.details()) < 8192
