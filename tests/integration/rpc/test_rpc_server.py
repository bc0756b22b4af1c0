"""A server's life: what it listens on, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from tests.integration.rpc.servicers import POLICY, Serve
from vlarl.clients.policy import AsyncPolicyClient, PolicyError
from vlarl.config.network import ServerConfig
from vlarl.rpc.address import ListenError
from vlarl.rpc.channel import open_channel, server_health, wait_until_serving
from vlarl.rpc.server import RpcServer

IMAGE, WISH = b"image", "lift the bowl"
ROOT = Path(__file__).parents[3]


def is_open(address: str) -> bool:
    host, port = address.strip().split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def test_a_port_in_use_is_said_in_one_sentence(serve: Serve) -> None:
    first = await serve(metrics_listen="127.0.0.1:0")
    with pytest.raises(ListenError) as caught:
        await serve(listen=first.address)
    assert str(caught.value) == f"can't listen on {first.address}: Address already in use"
    with pytest.raises(ListenError, match=r"can't serve metrics on .*: Address already in use"):
        await serve(metrics_listen=first.address)
    assert await asyncio.to_thread(server_health, first.address) == "SERVING"


async def test_addresses_that_cannot_be_had() -> None:
    for listen in ("127.0.0.1", "nowhere.invalid:1", "192.0.2.1:1"):
        with pytest.raises(ListenError, match=listen):
            await RpcServer(ServerConfig(listen=listen), []).start()


async def test_the_address_file_appears_whole(serve: Serve, tmp_path: Path) -> None:
    file, metrics = tmp_path / "run/address", tmp_path / "run/metrics"
    served = await serve(
        address_file=file, metrics_listen="127.0.0.1:0", metrics_address_file=metrics
    )
    assert file.read_text() == served.address + "\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["address", "metrics"]
    assert not served.address.endswith(":0")


async def test_metrics_are_scraped_from_a_port_of_their_own(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "metrics"
    served = await serve(metrics_listen="127.0.0.1:0", metrics_address_file=file)
    async with AsyncPolicyClient(served.address) as client:
        await client.predict(IMAGE, WISH, seed=1)
        with pytest.raises(PolicyError):
            await client.predict(IMAGE, "be strict", seed=1)
    url = f"http://{file.read_text().strip()}/metrics"
    text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())).decode()
    labels = f'grpc_method="PredictActions",grpc_service="{POLICY}"'
    for line in (
        f'grpc_server_handled_total{{grpc_code="OK",{labels}}} 1.0',
        f'grpc_server_handled_total{{grpc_code="INVALID_ARGUMENT",{labels}}} 1.0',
        f"grpc_server_started_total{{{labels}}} 2.0",
        f"grpc_server_handling_seconds_count{{{labels}}} 2.0",
    ):
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text
    await served.server.stop()
    assert not is_open(file.read_text())
    assert not is_open(served.address)


async def test_two_servers_in_one_process_count_for_themselves(serve: Serve) -> None:
    first, second = await serve(), await serve()
    async with AsyncPolicyClient(first.address) as client:
        await client.predict(IMAGE, WISH, seed=1)
    assert (first.handled("PredictActions", "OK"), second.handled("PredictActions", "OK")) == (1, 0)


async def test_serving_ends_with_the_work_behind_it(serve: Serve) -> None:
    served = await serve()

    async def work() -> None:
        raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError, match="the engine died"):
        await served.server.serve_until_terminated(watch=asyncio.create_task(work()))
    assert not is_open(served.address)


async def test_a_drain_lets_calls_finish_and_takes_no_new_ones(serve: Serve) -> None:
    served = await serve()
    order = []

    async def drain() -> None:
        order.append("drain")

    serving = asyncio.create_task(served.server.serve_until_terminated(drain))
    async with (
        AsyncPolicyClient(served.address) as client,
        open_channel(served.address) as channel,
    ):
        await wait_until_serving(channel, POLICY, 5)
        call = asyncio.create_task(client.predict(IMAGE, "hang", seed=1))
        await served.policy.started.wait()
        served.server.terminate()
        await asyncio.wait({serving}, timeout=0.3)
        assert not serving.done()
        assert order == ["drain"]
        served.policy.release.set()
        assert (await call).policy_version == 3
        await asyncio.wait_for(serving, 5)
    assert not is_open(served.address)


async def test_work_that_is_done_has_the_last_word(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A trainer's summary stays the last line; whoever is told to drain says so."""
    caplog.set_level(logging.INFO, "vlarl.rpc.server")
    done = asyncio.create_task(asyncio.sleep(0))
    await (await serve()).server.serve_until_terminated(watch=done)
    assert "drains" not in caplog.text
    told = await serve()
    told.server.terminate()
    await told.server.serve_until_terminated()
    assert "drains" in caplog.text


async def test_a_failing_drain_still_stops_the_server(serve: Serve) -> None:
    served = await serve()

    async def drain() -> None:
        raise RuntimeError("can't hand back")

    served.server.terminate()
    with pytest.raises(RuntimeError, match="can't hand back"):
        await served.server.serve_until_terminated(drain)
    assert not is_open(served.address)


class Process:
    """A server process, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file

    async def line(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 20)
        return line.decode().strip()

    @property
    def address(self) -> str:
        return self.file.read_text().strip()

    async def ended(self, within: float = 10) -> int:
        return await asyncio.wait_for(self.process.wait(), within)


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts server processes, and kills what the test left."""
    started = []

    async def launch(stage: str, drain_seconds: float = 20.0) -> Process:
        script = "tests.integration.rpc.drained_server"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", script, str(tmp_path / "address"), str(drain_seconds), stage),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return Process(process, tmp_path / "address")

    yield launch
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_process(start: Start, number: signal.Signals) -> None:
    process = await start("serve")
    assert await process.line() == "serving"
    metrics = process.file.with_suffix(".metrics").read_text()
    assert is_open(metrics)
    async with AsyncPolicyClient(process.address) as client:
        call = asyncio.create_task(client.predict(IMAGE, "hang", seed=1))
        async with open_channel(process.address) as channel:
            await wait_until_serving(channel, POLICY, 5)
        await asyncio.wait({call}, timeout=0.3)
        process.process.send_signal(number)
        assert await process.line() == "draining"
        # The call in progress has the drain's 20 seconds; the second signal cuts it.
        await asyncio.wait({call}, timeout=0.5)
        assert not call.done()
        process.process.send_signal(number)
        with pytest.raises(PolicyError) as caught:
            await call
        assert caught.value.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert [await process.line(), await process.line()] == ["drained", "cleaned up"]
    assert await process.ended() == 0
    assert not is_open(process.address)
    assert not is_open(metrics)


async def test_an_idle_server_drains_at_once(start: Start) -> None:
    process = await start("serve")
    await process.line()
    process.process.terminate()
    assert await process.ended(within=5) == 0


async def test_the_drain_is_bounded(start: Start) -> None:
    process = await start("stuck", drain_seconds=0.5)
    await process.line()
    process.process.terminate()
    assert await process.line() == "draining"
    assert await process.ended(within=5) == 0
    assert not is_open(process.address)


async def test_a_signal_while_loading_unwinds_the_start(start: Start) -> None:
    process = await start("load")
    assert await process.line() == "loading"
    state = await asyncio.to_thread(server_health, process.address)
    assert state.startswith(("NOT_SERVING", "not reachable: "))
    process.process.terminate()
    assert await process.line() == "cleaned up"
    assert await process.ended() != 0
