"""The queue as Prometheus sees it. The trainer shows it, because a run has one trainer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry, Gauge
from redis.exceptions import RedisError

from vlarl.queue.backlog import backlog
from vlarl.queue.rollout_queue import QueueError, RolloutQueue

_SECONDS = 5.0


class QueueGauges:
    """How much waits, is in work, and was given up."""

    def __init__(self, registry: CollectorRegistry) -> None:
        streams = ["stream"]
        self._waiting = Gauge(
            "vlarl_queue_waiting", "Entries that nobody has taken yet.", streams, registry=registry
        )
        self._in_work = Gauge(
            "vlarl_queue_in_work",
            "Entries that somebody has taken and not passed on.",
            streams,
            registry=registry,
        )
        self._dead = Gauge(
            "vlarl_queue_dead_letters", "Episodes that were given up.", registry=registry
        )

    async def look(self, queue: RolloutQueue) -> None:
        """Looks at the queue once."""
        found = await backlog(queue)
        for stream, waiting in found.waiting.items():
            self._waiting.labels(stream).set(waiting)
            self._in_work.labels(stream).set(found.in_work[stream])
        self._dead.set(found.dead_letters)


@contextlib.asynccontextmanager
async def watched(queue: RolloutQueue, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Looks at the queue every few seconds while the context is open."""
    gauges = QueueGauges(registry)

    async def watch() -> None:
        while True:
            # Who works with the queue finds out that it is gone, and says so.
            with contextlib.suppress(QueueError, RedisError):
                await gauges.look(queue)
            await asyncio.sleep(_SECONDS)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
