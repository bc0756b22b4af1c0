"""Tokens and certificates, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool

from tests.integration.rpc.conftest import Certificates
from tests.integration.rpc.servicers import POLICY, Serve
from vlarl.clients.policy import AsyncPolicyClient, PolicyClient, PolicyError
from vlarl.config.network import ChannelConfig
from vlarl.env.v1 import env_pb2  # noqa: F401 - its descriptors
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.reward.v1 import reward_pb2  # noqa: F401
from vlarl.rpc.address import ListenError
from vlarl.rpc.auth import CLIENT_METHODS, TokenError
from vlarl.rpc.channel import open_channel, server_health, wait_until_serving
from vlarl.trainer.v1 import trainer_pb2  # noqa: F401

IMAGE, WISH = b"image", "lift the bowl"
SECRET, WRONG, ALICE = "secret", "wrong", "alice"


def token(path: Path, text: str = SECRET) -> Path:
    path.write_text(text + "\n")
    return path


async def refused(client: AsyncPolicyClient) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        await client.predict(IMAGE, WISH, seed=1)
    return caught.value


async def test_a_call_needs_the_token_and_health_does_not(serve: Serve, tmp_path: Path) -> None:
    served = await serve(token_file=token(tmp_path / "token"))
    async with AsyncPolicyClient(served.address) as client:
        error = await refused(client)
        assert error.code is grpc.StatusCode.UNAUTHENTICATED
        assert "a bearer token is needed" in error.message
        assert error.reason == "TOKEN_MISSING"
    async with AsyncPolicyClient(served.address, token=WRONG) as client:
        assert "the bearer token is wrong" in (await refused(client)).message
    assert served.policy.calls == 0
    async with AsyncPolicyClient(served.address, token=SECRET) as client:
        assert (await client.predict(IMAGE, WISH, seed=1)).policy_version == 3
    async with open_channel(served.address) as channel:
        await wait_until_serving(channel, POLICY, 5)
    assert await asyncio.to_thread(server_health, served.address) == "SERVING"
    await served.counts("PredictActions", "UNAUTHENTICATED", 2)


async def test_a_token_is_rotated_without_a_gap(serve: Serve, tmp_path: Path) -> None:
    at_server, at_client = token(tmp_path / "server"), token(tmp_path / "client")
    served = await serve(token_file=at_server)
    async with AsyncPolicyClient(served.address, token_file=at_client) as client:
        await client.predict(IMAGE, WISH, seed=1)
        token(at_server, "secret\nfresh")
        await client.predict(IMAGE, WISH, seed=1)
        token(at_client, "fresh")
        await client.predict(IMAGE, WISH, seed=1)
        token(at_server, "fresh")
        await client.predict(IMAGE, WISH, seed=1)
        assert served.policy.metadata["authorization"] == "Bearer fresh"
        token(at_server, "other")
        assert (await refused(client)).code is grpc.StatusCode.UNAUTHENTICATED


async def update_weights(address: str, token: str) -> grpc.StatusCode:
    """The code with which an update of the weights ends."""

    async def parts() -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
        yield policy_pb2.UpdateWeightsRequest(header=policy_pb2.AdapterHeader(version=4))

    async with open_channel(address, token=token) as channel:
        try:
            await policy_pb2_grpc.PolicyServiceStub(channel).UpdateWeights(parts())
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_clients_token_is_good_for_asking_only(serve: Serve, tmp_path: Path) -> None:
    clients = token(tmp_path / "clients", f"{ALICE}\nbob")
    served = await serve(token_file=token(tmp_path / "token"), client_token_file=clients)
    for name in (ALICE, "bob", SECRET):
        async with AsyncPolicyClient(served.address, token=name) as client:
            assert (await client.predict(IMAGE, WISH, seed=1)).policy_version == 3
    assert await update_weights(served.address, ALICE) is grpc.StatusCode.PERMISSION_DENIED
    assert await update_weights(served.address, "mallory") is grpc.StatusCode.UNAUTHENTICATED
    assert await update_weights(served.address, SECRET) is grpc.StatusCode.OK
    token(clients, "bob")
    async with AsyncPolicyClient(served.address, token=ALICE) as client:
        assert (await refused(client)).code is grpc.StatusCode.UNAUTHENTICATED


def test_clients_are_told_what_there_is_and_nothing_that_changes_it() -> None:
    pool = descriptor_pool.Default()
    for service, methods in CLIENT_METHODS.items():
        if service.startswith("vlarl."):
            known = {method.name for method in pool.FindServiceByName(service).methods}
            assert methods <= known
    every = {name for methods in CLIENT_METHODS.values() for name in methods}
    assert not every & {"UpdateWeights", "GetWeights", "Pause", "Resume", "Checkpoint"}


async def test_a_missing_token_file_is_said_at_the_start(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="can't be read"):
        await serve(token_file=tmp_path / "nothing")
    with pytest.raises(TokenError, match="can't be read"):
        PolicyClient("127.0.0.1:1", token_file=tmp_path / "nothing")


async def test_reflection_is_off_unless_wanted_and_needs_the_token(
    serve: Serve, tmp_path: Path
) -> None:
    closed = await serve()
    assert await _reflected(closed.address, None) is grpc.StatusCode.UNIMPLEMENTED
    opened = await serve(reflection=True, token_file=token(tmp_path / "token"))
    assert await _reflected(opened.address, None) is grpc.StatusCode.UNAUTHENTICATED
    names = await _reflected(opened.address, SECRET)
    assert isinstance(names, list)
    assert {POLICY, "grpc.health.v1.Health"} <= set(names)


async def _reflected(address: str, sent: str | None) -> list[str] | grpc.StatusCode:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with open_channel(address, token=sent) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        # With an iterator of requests, grpcio makes an INTERNAL of its own of the code of a server
        # that ends the call while one is being written.
        try:
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
        except grpc.aio.AioRpcError:
            answer = grpc.aio.EOF
        if answer is grpc.aio.EOF:
            return await call.code()
        return [service.name for service in answer.list_services_response.service]


async def test_tls(serve: Serve, certificates: Certificates, strangers: Certificates) -> None:
    chain, key = certificates.server
    served = await serve(tls_certificate=chain, tls_key=key)
    async with AsyncPolicyClient(served.address, tls_ca=certificates.ca) as client:
        assert (await client.predict(IMAGE, WISH, seed=1)).policy_version == 3
    for ca in (None, strangers.ca):
        async with AsyncPolicyClient(served.address, tls_ca=ca, timeout_seconds=2) as client:
            assert (await refused(client)).code in {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            }
    trusting = ChannelConfig(tls_ca=certificates.ca)
    assert await asyncio.to_thread(server_health, served.address, trusting) == "SERVING"


async def test_tls_with_several_addresses_and_a_token(
    serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    chain, key = certificates.server
    secret = token(tmp_path / "token")
    both = [await serve(tls_certificate=chain, tls_key=key, token_file=secret) for _ in range(2)]
    addresses = ",".join(served.address for served in both)
    async with AsyncPolicyClient(addresses, tls_ca=certificates.ca, token=SECRET) as client:
        for _ in range(8):
            await client.predict(IMAGE, WISH, seed=1)
    assert sum(served.policy.calls for served in both) == 8


async def test_mutual_tls(
    serve: Serve, certificates: Certificates, strangers: Certificates
) -> None:
    chain, key = certificates.server
    served = await serve(tls_certificate=chain, tls_key=key, tls_client_ca=certificates.ca)
    for own, welcome in ((certificates.client, True), (strangers.client, False), (None, False)):
        pair = {"tls_certificate": own[0], "tls_key": own[1]} if own else {}
        client = AsyncPolicyClient(
            served.address, tls_ca=certificates.ca, timeout_seconds=2, **pair
        )
        async with client:
            if welcome:
                assert (await client.predict(IMAGE, WISH, seed=1)).policy_version == 3
            else:
                await refused(client)
    assert served.policy.calls == 1


async def test_tls_files_that_cannot_be_used_are_named(
    serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    chain, key = certificates.server
    with pytest.raises(ListenError, match="needs both"):
        await serve(tls_certificate=chain)
    with pytest.raises(ListenError, match=r"nothing\.pem can't be read"):
        await serve(tls_certificate=chain, tls_key=tmp_path / "nothing.pem")
    with pytest.raises(ListenError, match="is not PEM"):
        await serve(tls_certificate=token(tmp_path / "junk"), tls_key=key)
    with pytest.raises(ListenError, match="tls_client_ca needs"):
        await serve(tls_client_ca=certificates.ca)
    with pytest.raises(ValueError, match="both tls_certificate and tls_key"):
        AsyncPolicyClient("127.0.0.1:1", tls_ca=certificates.ca, tls_key=key)
    with pytest.raises(ValueError, match="need tls_ca"):
        AsyncPolicyClient("127.0.0.1:1", tls_certificate=chain, tls_key=key)
