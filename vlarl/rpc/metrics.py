"""Prometheus: what every gRPC server counts, and the port from which it is scraped.

The names are those of go-grpc-prometheus, so that existing dashboards fit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from vlarl.rpc.interception import Context, Guard, Method

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def new_registry() -> CollectorRegistry:
    """A registry of its own for each server, with the process's memory, CPU and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def metrics_guard(registry: CollectorRegistry) -> Guard:
    """Counts calls by their status code, and times them. Must be the outermost guard."""
    labels = ("grpc_service", "grpc_method")
    started = Counter("grpc_server_started", "Calls begun.", labels, registry=registry)
    handled = Counter(
        "grpc_server_handled", "Calls ended.", (*labels, "grpc_code"), registry=registry
    )
    seconds = Histogram(
        "grpc_server_handling_seconds",
        "Seconds from begin to end of a call.",
        labels,
        buckets=_BUCKETS,
        registry=registry,
    )

    @contextlib.asynccontextmanager
    async def guard(method: Method, context: Context) -> AsyncIterator[None]:
        began = time.perf_counter()
        started.labels(method.service, method.name).inc()
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            code = _code(context, cancelled)
            handled.labels(method.service, method.name, code.name).inc()
            seconds.labels(method.service, method.name).observe(time.perf_counter() - began)

    return guard


def _code(context: Context, cancelled: bool) -> grpc.StatusCode:
    code: Any = context.code()
    found = code if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0)
    if cancelled:
        remaining = context.time_remaining()
        expired = remaining is not None and remaining <= 0
        found = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
    return found or grpc.StatusCode.UNKNOWN


class MetricsEndpoint:
    """The HTTP endpoint that Prometheus scrapes; open from construction until `stop`.

    Raises:
        OSError: the port can't be bound.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def stop(self) -> None:
        """Closes the port; returns when its thread has ended."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
