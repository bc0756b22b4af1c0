"""Scores what the env workers pushed, and pushes it on to its trainer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_reward.metrics import RewardMetrics
from vlarl_reward.models.base import Misjudged, Result, Scorer, Unscorable, score_all

log = logging.getLogger(__name__)


class ScoringDesk:
    """One scorer, shared by the queue and gRPC callers, one batch at a time."""

    def __init__(self, scorer: Scorer, metrics: RewardMetrics, terms: str = "") -> None:
        """terms: what its scores say that they were made by."""
        self.scorer = scorer
        self._terms = terms
        self.metrics = metrics
        self._turn = asyncio.Lock()

    async def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory], source: str
    ) -> list[Result]:
        """Scores a batch off the event loop; `source` is where it came from, for the metrics."""
        async with self._turn:
            with self.metrics.score_seconds.time():
                results = await asyncio.to_thread(score_all, self.scorer, trajectories)
        self.metrics.batch.observe(len(trajectories))
        labels = (source, self.scorer.name)
        for trajectory, result in zip(trajectories, results, strict=True):
            if isinstance(result, (Unscorable, Misjudged)):
                self.metrics.failures.labels(source).inc()
            else:
                result.terms = self._terms
                self.metrics.trajectories.labels(*labels).inc()
                self.metrics.steps.labels(*labels).inc(len(trajectory.steps))
        return results


class RewardWorker:
    """Consumes trajectories until told to stop; several workers share the consumer group."""

    def __init__(self, queue: RolloutQueue, desk: ScoringDesk, name: str, batch: int) -> None:
        self._queue = queue
        self._desk = desk
        self._name = name
        self._batch = batch
        self._stopping = False

    def stop(self) -> None:
        """Lets the batch in work finish, and takes no more."""
        self._stopping = True

    async def run(self) -> None:
        """Scores until `stop`."""
        while not self._stopping:
            deliveries = await self._queue.next_trajectories(self._name, self._batch, 1.0)
            if self._stopping:
                for delivery in deliveries:
                    await self._queue.release_trajectory(delivery)
            elif deliveries:
                await self._score(deliveries)

    async def _score(self, deliveries: list[Delivery[rollout_pb2.Trajectory]]) -> None:
        results = await self._desk.score([delivery.message for delivery in deliveries], "queue")
        for delivery, result in zip(deliveries, results, strict=True):
            if isinstance(result, rollout_pb2.RewardScores):
                await self._queue.finish_scoring(delivery, result)
                continue
            if isinstance(result, Misjudged):
                cause = result.cause
            else:
                field, description = result.problems[0]
                cause = f"{field} {description}"
            log.warning("episode %s can't be scored: %s", delivery.message.spec.episode_id, cause)
            await self._queue.fail_scoring(delivery, cause)
