"""Scores what the env workers pushed, and pushes it on to its trainer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from services.reward.metrics import RewardMetrics
from services.reward.scorer import Scorer, trajectory_problems
from vlarl.queue import Delivery, RolloutQueue
from vlarl.rollout.v1 import rollout_pb2

log = logging.getLogger(__name__)


class ScoringDesk:
    """One scorer, shared by the queue and gRPC callers, one batch at a time."""

    def __init__(self, scorer: Scorer, metrics: RewardMetrics) -> None:
        self.scorer = scorer
        self.metrics = metrics
        self._turn = asyncio.Lock()

    async def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory], source: str
    ) -> list[rollout_pb2.RewardScores]:
        """Scores a batch off the event loop; `source` is where it came from, for the metrics."""
        async with self._turn:
            with self.metrics.score_seconds.time():
                scores = await asyncio.to_thread(self.scorer.score, trajectories)
        self.metrics.batch.observe(len(trajectories))
        labels = (source, self.scorer.name)
        self.metrics.trajectories.labels(*labels).inc(len(trajectories))
        self.metrics.steps.labels(*labels).inc(sum(len(t.steps) for t in trajectories))
        return scores


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
        sound = []
        for delivery in deliveries:
            problems = trajectory_problems(delivery.message, self._desk.scorer.needs_frames)
            if problems:
                field, description = problems[0]
                await self._fail(delivery, f"{field} {description}")
            else:
                sound.append(delivery)
        if not sound:
            return
        scores = await self._desk.score([delivery.message for delivery in sound], "queue")
        for delivery, score in zip(sound, scores, strict=True):
            await self._queue.finish_scoring(delivery, score)

    async def _fail(self, delivery: Delivery[rollout_pb2.Trajectory], cause: str) -> None:
        log.warning("episode %s can't be scored: %s", delivery.message.spec.episode_id, cause)
        self._desk.metrics.failures.labels("queue").inc()
        await self._queue.fail_scoring(delivery, cause)
