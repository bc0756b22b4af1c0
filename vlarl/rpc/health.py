"""The standard health service, for probes, load balancers and `wait_until_serving`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlarl.rpc.errors import NotFound
from vlarl.rpc.interception import Context

_Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped
    """Health of a server and its services, which are ready together.

    Unlike grpcio's own, setting the status never waits for a watcher, and watchers end with the
    drain instead of holding it up.
    """

    def __init__(self, service_names: Sequence[str]) -> None:
        """All start as NOT_SERVING; "" is the server as a whole."""
        self._names = frozenset({"", *service_names})
        self._status = _Status.NOT_SERVING
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """SERVING or NOT_SERVING; ignored once closed."""
        if not self._closed:
            self._change(_Status.SERVING if serving else _Status.NOT_SERVING)

    def close(self) -> None:
        """NOT_SERVING from now on; watchers are told, and their streams end."""
        self._closed = True
        self._change(_Status.NOT_SERVING)

    def _change(self, status: int) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answers the status now."""
        if request.service not in self._names:
            raise NotFound(f"no service {request.service!r} here")
        return _Status(status=self._status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answers the status now and whenever it changes."""
        if request.service not in self._names:
            yield _Status(status=_Status.SERVICE_UNKNOWN)
            return
        told = None
        while True:
            changed = self._changed
            if self._status != told:
                told = self._status
                yield _Status(status=told)
            if self._closed:
                return
            await changed.wait()
