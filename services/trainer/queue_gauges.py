"""The queue as Prometheus sees it. The trainer shows it, because a run has one trainer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry, Gauge
from redis.exceptions import RedisError

from vlarl.queue import QueueError, RolloutQueue

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
        """Looks at the queue once; the trainers' streams of all runs count as one."""
        length, pending = Counter[str](), Counter[str]()
        for state in await queue.states():
            stream = state.stream.partition(":")[0]
            length[stream] += state.length
            pending[stream] += state.pending
        for stream in length:
            # Not Redis's own lag, which it loses count of where entries are deleted.
            self._waiting.labels(stream).set(length[stream] - pending[stream])
            self._in_work.labels(stream).set(pending[stream])
        self._dead.set(await queue.dead_count())


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
