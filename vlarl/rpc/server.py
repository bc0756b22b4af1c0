"""A gRPC server as every service runs it: health, limits, authentication, metrics, drain.

server = RpcServer(config, ["vlarl.policy.v1.PolicyService"])
policy_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, server.grpc)
await server.start()                      # listens; health says NOT_SERVING
...                                       # load what answering needs
server.set_serving(True)
await server.serve_until_terminated(release_episodes)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2_grpc
from prometheus_client import CollectorRegistry

from vlarl.config.network import ServerConfig
from vlarl.rpc.address import ListenError, read_pem, split_address
from vlarl.rpc.auth import OPEN_SERVICES, TokenFile, token_guard
from vlarl.rpc.errors import DeadlineExceeded, ResourceExhausted, error_guard
from vlarl.rpc.health import HealthServicer
from vlarl.rpc.interception import Context, Guard, GuardInterceptor, Method
from vlarl.rpc.metrics import MetricsEndpoint, metrics_guard, new_registry
from vlarl.rpc.rate import CallRate, rate_guard

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RpcServer:
    """One service's gRPC server and metrics endpoint, from listening to the last drained call.

    One of them may run in a process's main thread: there it takes over SIGTERM and SIGINT. Until
    `serve_until_terminated` is entered a signal cancels the task that called `start`; from then on
    the first one drains, the second one ends at once.

    `async with server:` is `start` and `stop`.
    """

    def __init__(
        self,
        config: ServerConfig,
        service_names: Sequence[str],
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Takes the full names of the services; their health is reported one by one.

        Must be constructed in a running event loop.

        Raises:
            TokenError: the token file is missing or empty.
        """
        self._config = config
        self._names = tuple(service_names)
        self.registry = registry or new_registry()
        """Where the service registers metrics of its own."""
        limit = config.max_message_mib * 2**20
        self.grpc = grpc.aio.server(
            interceptors=[GuardInterceptor(self._guards())],
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", int(config.max_connection_age_seconds * 1000)),
                # Clients ping every 30 s, also between calls; a dead one is noticed as soon.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
        self._health = HealthServicer(self._names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if config.reflection:
            self._enable_reflection()
        self._metrics: MetricsEndpoint | None = None
        self._starter: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain = asyncio.Event()
        self._cut = asyncio.Event()
        self._stopped = False

    def _guards(self) -> list[Guard]:
        config = self._config
        guards: list[Guard] = [metrics_guard(self.registry), error_guard]
        own = TokenFile(config.token_file) if config.token_file else None
        clients = TokenFile(config.client_token_file) if config.client_token_file else None
        if config.client_calls_per_second is not None:
            rate = CallRate(config.client_calls_per_second, config.client_burst)
            guards.append(rate_guard(rate, own, clients, self.registry))
        if own is not None:
            guards.append(token_guard(own, clients))
        return [*guards, limits_guard(config)]

    def _enable_reflection(self) -> None:
        from grpc_reflection.v1alpha import reflection

        shown = [*self._names, reflection.SERVICE_NAME, "grpc.health.v1.Health"]
        reflection.enable_server_reflection(shown, self.grpc)

    async def start(self) -> str:
        """Listens, and returns the bound HOST:PORT, which goes into the address file too.

        Raises:
            ListenError: the address can't be bound, or a TLS file can't be used.
        """
        self._take_signals()
        try:
            address = self._bind()
            await self.grpc.start()
            self._start_metrics()
        except BaseException:
            await self.stop()
            raise
        if self._config.address_file is not None:
            _write_address(self._config.address_file, address)
        logger.info("%s listens on %s", ", ".join(self._names), address)
        return address

    def _bind(self) -> str:
        host, _ = split_address(self._config.listen)
        credentials = _server_credentials(self._config)
        try:
            if credentials is None:
                port = self.grpc.add_insecure_port(self._config.listen)
            else:
                port = self.grpc.add_secure_port(self._config.listen, credentials)
        except RuntimeError as error:
            cause = _bind_failure(self._config.listen) or str(error)
            raise ListenError(f"can't listen on {self._config.listen}: {cause}") from error
        return f"{host}:{port}"

    def _start_metrics(self) -> None:
        listen = self._config.metrics_listen
        if listen is None:
            return
        host, port = split_address(listen)
        try:
            self._metrics = MetricsEndpoint(host.strip("[]"), port, self.registry)
        except OSError as error:
            raise ListenError(f"can't serve metrics on {listen}: {error.strerror}") from error
        if self._config.metrics_address_file is not None:
            _write_address(self._config.metrics_address_file, f"{host}:{self._metrics.port}")

    def set_serving(self, serving: bool) -> None:
        """Reports SERVING or NOT_SERVING for the server and each of its services."""
        self._health.set_serving(serving)

    async def serve_until_terminated(
        self,
        on_drain: Callable[[], Awaitable[None]] | None = None,
        *,
        watch: asyncio.Future[Any] | None = None,
    ) -> None:
        """Serves until SIGTERM, SIGINT or `terminate`, then drains and stops.

        Health turns NOT_SERVING, `on_drain` runs, calls in progress end by themselves: all within
        the configured seconds. A second signal, or cancellation, ends them at once.

        Args:
            on_drain: what the service has to finish or hand back.
            watch: work without which serving makes no sense. If it ends early the server drains;
                if it failed, calls in progress are cut and its error is raised.
        """
        self._starter = None
        try:
            await self._until_draining(watch)
            # Not at the end of work that was waited for, which has had the last word.
            level = logging.INFO if self._drain.is_set() else logging.DEBUG
            logger.log(level, "%s drains", ", ".join(self._names))
            self._health.close()
            deadline = asyncio.get_running_loop().time() + self._config.drain_seconds
            if on_drain is not None:
                await self._unless_cut(on_drain(), deadline)
            grace = max(0.0, deadline - asyncio.get_running_loop().time())
            await self._unless_cut(self.grpc.stop(grace), deadline + 1.0)
        finally:
            await self.stop()

    async def _until_draining(self, watch: asyncio.Future[Any] | None) -> None:
        draining = asyncio.ensure_future(self._drain.wait())
        try:
            waiting = {draining, watch} if watch is not None else {draining}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
        if watch is not None and watch.done():
            watch.result()

    async def _unless_cut(self, work: Awaitable[Any], deadline: float) -> None:
        """Waits for `work` until the deadline or a second signal; its own error is raised."""
        working: asyncio.Future[Any] = asyncio.ensure_future(work)
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            timeout = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait({working, cut}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            else:
                logger.warning("%s stops without a complete drain", ", ".join(self._names))
        finally:
            for task in (working, cut):
                task.cancel()
            await asyncio.gather(working, cut, return_exceptions=True)

    def terminate(self) -> None:
        """Drain; called again, end at once."""
        if self._drain.is_set():
            self._cut.set()
            self._release_signals()
        self._drain.set()

    def _on_signal(self) -> None:
        if self._starter is not None:
            self._starter.cancel("terminated by a signal")
        else:
            self.terminate()

    async def stop(self) -> None:
        """Ends calls in progress, closes both ports, gives the signals back. May be repeated."""
        if self._stopped:
            return
        self._stopped = True
        self._starter = None
        self._health.close()
        try:
            await self.grpc.stop(0)
        finally:
            if self._metrics is not None:
                await asyncio.to_thread(self._metrics.stop)
            self._release_signals()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _take_signals(self) -> None:
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is not threading.main_thread():
            return
        self._starter = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal)

    def _release_signals(self) -> None:
        if self._loop is not None:
            for number in _SIGNALS:
                self._loop.remove_signal_handler(number)
            self._loop = None


def limits_guard(config: ServerConfig) -> Guard:
    """Bounds the calls in progress and the time of unary ones; health is exempt."""
    in_progress = 0

    @contextlib.asynccontextmanager
    async def guard(method: Method, _: Context) -> AsyncIterator[None]:
        nonlocal in_progress
        if method.service in OPEN_SERVICES:
            yield
            return
        bound = config.max_concurrent_rpcs
        if bound is not None and in_progress >= bound:
            raise ResourceExhausted(f"{bound} calls are in progress", reason="TOO_MANY_CALLS")
        in_progress += 1
        try:
            async with asyncio.timeout(None if method.streaming else config.max_unary_seconds) as t:
                yield
        except TimeoutError as error:
            if not t.expired():
                raise
            text = f"{method.name} took longer than {config.max_unary_seconds:g} s"
            raise DeadlineExceeded(text, reason="SERVER_LIMIT") from error
        finally:
            in_progress -= 1

    return guard


def _server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    if config.tls_certificate is None and config.tls_key is None:
        if config.tls_client_ca is not None:
            raise ListenError("tls_client_ca needs tls_certificate and tls_key")
        return None
    if config.tls_certificate is None or config.tls_key is None:
        raise ListenError("TLS needs both tls_certificate and tls_key")
    pair = (read_pem(config.tls_key), read_pem(config.tls_certificate))
    client_ca = read_pem(config.tls_client_ca) if config.tls_client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, client_ca is not None)


def _bind_failure(address: str) -> str | None:
    """Why binding fails, in the system's words; gRPC doesn't say."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen()
    except OSError as error:
        return error.strerror
    return None


def _write_address(path: Path, address: str) -> None:
    """Writes the file whole: a reader sees nothing or the address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(address + "\n", encoding="utf-8")
    partial.replace(path)
