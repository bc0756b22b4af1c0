"""The queue behind TLS. Our Valkey has none, so Python's own ssl stands in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Valkey
from tests.integration.rpc.conftest import Certificates
from vlarl.config import QueueConfig
from vlarl.queue.rollout_queue import QueueError, RolloutQueue, check_queue
from vlarl.rollout.v1 import rollout_pb2


@contextlib.asynccontextmanager
async def behind_tls(valkey: Valkey, certificates: Certificates) -> AsyncIterator[str]:
    """Address of the queue for clients that the CA has signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(*certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(valkey.socket)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def test_the_queue_works_through_mutual_tls(
    valkey: Valkey, certificates: Certificates
) -> None:
    certificate, key = certificates.client
    async with behind_tls(valkey, certificates) as url:
        config = QueueConfig(
            url=url, tls_ca=certificates.ca, tls_certificate=certificate, tls_key=key
        )
        async with RolloutQueue(config) as queue:
            spec = rollout_pb2.EpisodeSpec(episode_id="a", run_id="run")
            assert await queue.issue([spec]) == 1
            delivery = await queue.next_episode("worker", block_seconds=2)
    assert delivery is not None
    assert delivery.message.episode_id == "a"


async def test_strangers_are_kept_out_on_both_sides(
    valkey: Valkey, certificates: Certificates, strangers: Certificates
) -> None:
    certificate, key = certificates.client
    async with behind_tls(valkey, certificates) as url:
        for config in (
            QueueConfig(url=url, tls_ca=certificates.ca),
            QueueConfig(
                url=url,
                tls_ca=certificates.ca,
                tls_certificate=strangers.client[0],
                tls_key=strangers.client[1],
            ),
            QueueConfig(url=url, tls_ca=strangers.ca, tls_certificate=certificate, tls_key=key),
            QueueConfig(url=url, tls_certificate=certificate, tls_key=key),
        ):
            with pytest.raises(QueueError):
                await check_queue(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "redis://redis:6379", "tls_ca": Path("ca.pem")}, "needs a rediss:// url"),
        ({"url": "rediss://redis:6379", "tls_key": Path("key.pem")}, "both tls_certificate"),
    ],
)
def test_half_a_tls_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueueConfig.model_validate(settings)
