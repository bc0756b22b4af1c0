"""A real server on loopback with small real servicers, and certificates made on the spot."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.rpc.servicers import ENV, POLICY, EchoEnv, EchoPolicy, Serve, Served
from vlarl.config.network import ServerConfig
from vlarl.env.v1 import env_pb2_grpc
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.server import RpcServer


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers that the test's end stops."""
    running: list[RpcServer] = []

    async def start(**config: object) -> Served:
        server = RpcServer(ServerConfig.model_validate(config), [POLICY, ENV])
        running.append(server)
        policy, env = EchoPolicy(), EchoEnv()
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server.grpc)
        env_pb2_grpc.add_EnvServiceServicer_to_server(env, server.grpc)
        address = await server.start()
        server.set_serving(True)
        return Served(server, policy, env, address)

    yield start
    await asyncio.gather(*(server.stop() for server in running))


class Certificates:
    """A CA, and keys that it has signed: for a server on 127.0.0.1 and for a client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.pem"
        self._openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA"
        )
        (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self.server = self._sign("server")
        self.client = self._sign("client")

    def _sign(self, name: str) -> tuple[Path, Path]:
        request = (
            *_NEW_KEY,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
        )
        self._openssl("req", *request)
        ca = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        files = ("-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "names")
        self._openssl("x509", "-req", *ca, *files)
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The same from a CA that nobody trusts."""
    return Certificates(tmp_path_factory.mktemp("strangers"))
