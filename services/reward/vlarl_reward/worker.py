"""Scores what the env workers pushed, and pushes it on to its trainer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence

from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_reward.metrics import RewardMetrics
from vlarl_reward.models.base import NotFinite, Result, RewardModel, Unscorable

log = logging.getLogger(__name__)

MAX_STEPS = 10_000
"""Most steps of a trajectory that is scored."""


def score_all(model: RewardModel, trajectories: Sequence[rollout_pb2.Trajectory]) -> list[Result]:
    """Scores of those trajectories that are whole, and what is wrong with the others, in order."""
    found = [trajectory_problems(one, model.needs_frames) for one in trajectories]
    pairs = zip(trajectories, found, strict=True)
    scores = iter(model.score([trajectory for trajectory, problems in pairs if not problems]))
    return [Unscorable(problems) if problems else _finite(next(scores)) for problems in found]


def _finite(result: rollout_pb2.RewardScores | Unscorable) -> Result:
    if isinstance(result, Unscorable):
        return result
    numbers = (*result.sparse, *result.dense, *result.total)
    if all(map(math.isfinite, numbers)):
        return result
    return NotFinite(
        f"reward model {result.model} {result.version} gives rewards that aren't finite numbers; "
        "another one has to be put in its place"
    )


def trajectory_problems(
    trajectory: rollout_pb2.Trajectory, needs_frames: bool
) -> list[tuple[str, str]]:
    """What keeps a trajectory from being scored, as (field, description) pairs."""
    problems = []
    # More are no episode, and a client can put millions into one request.
    if len(trajectory.steps) > MAX_STEPS:
        return [("trajectory.steps", f"at most {MAX_STEPS}, not {len(trajectory.steps)}")]
    if not trajectory.steps:
        problems.append(("trajectory.steps", "must have at least one step"))
    if trajectory.outcome == rollout_pb2.OUTCOME_UNSPECIFIED:
        problems.append(("trajectory.outcome", "must be OUTCOME_SUCCESS or OUTCOME_TIME_LIMIT"))
    for index, step in enumerate(trajectory.steps):
        if not step.action.token_ids:
            problems.append((f"trajectory.steps[{index}].action.token_ids", "must not be empty"))
        if needs_frames and not step.image:
            problems.append((f"trajectory.steps[{index}].image", "this reward model needs frames"))
    return problems


class RewardBatcher:
    """One reward model, shared by the queue and gRPC callers, one batch at a time."""

    def __init__(self, model: RewardModel, metrics: RewardMetrics, terms: str = "") -> None:
        """terms: what its scores say that they were made by."""
        self.model = model
        self._terms = terms
        self.metrics = metrics
        self._turn = asyncio.Lock()

    async def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory], source: str
    ) -> list[Result]:
        """Scores a batch off the event loop; `source` is where it came from, for the metrics."""
        async with self._turn:
            with self.metrics.score_seconds.time():
                results = await asyncio.to_thread(score_all, self.model, trajectories)
        self.metrics.batch.observe(len(trajectories))
        labels = (source, self.model.name)
        for trajectory, result in zip(trajectories, results, strict=True):
            if isinstance(result, (Unscorable, NotFinite)):
                self.metrics.failures.labels(source).inc()
            else:
                result.terms = self._terms
                self.metrics.trajectories.labels(*labels).inc()
                self.metrics.steps.labels(*labels).inc(len(trajectory.steps))
        return results


class RewardWorker:
    """Consumes trajectories until told to stop; several workers share the consumer group."""

    def __init__(self, queue: RolloutQueue, batcher: RewardBatcher, name: str, batch: int) -> None:
        self._queue = queue
        self._batcher = batcher
        self._name = name
        self._batch = batch
        self._stopping = False

    def stop(self) -> None:
        """Lets the batch in work finish, and takes no more."""
        self._stopping = True

    async def run(self) -> None:
        """Scores until `stop`."""
        frames = self._batcher.model.needs_frames
        while not self._stopping:
            deliveries = await self._queue.next_trajectories(
                self._name, self._batch, 1.0, frames=frames
            )
            if self._stopping:
                for delivery in deliveries:
                    await self._queue.release_trajectory(delivery)
            elif deliveries:
                await self._score(deliveries)

    async def _score(self, deliveries: list[Delivery[rollout_pb2.Trajectory]]) -> None:
        results = await self._batcher.score([delivery.message for delivery in deliveries], "queue")
        for delivery, result in zip(deliveries, results, strict=True):
            if isinstance(result, rollout_pb2.RewardScores):
                await self._queue.finish_scoring(delivery, result)
                continue
            if isinstance(result, NotFinite):
                cause = result.cause
            else:
                field, description = result.problems[0]
                cause = f"{field} {description}"
            log.warning("episode %s can't be scored: %s", delivery.message.spec.episode_id, cause)
            await self._queue.fail_scoring(delivery, cause)
