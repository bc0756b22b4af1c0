"""The processes of benchmarks/scale.py: env workers, a reward server, the trainer's ranks.

Each is a real user of the queue without what would take the time: workers have no simulator, the
learner no model. Each tells the benchmark over its pipe when a part is done, and how long it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
import zlib
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import TypeVar

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from vlarl.allocator import keep_freed_memory
from vlarl.config import QueueConfig
from vlarl.learning.ranks import Ranks
from vlarl.parent_death import end_with_parent
from vlarl.policy.v1 import policy_pb2
from vlarl.queue.rollout_queue import TRAJECTORIES, RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl.weights.merge import Checksums
from vlarl_reward.metrics import RewardMetrics
from vlarl_reward.models.outcome import OutcomeReward
from vlarl_reward.worker import RewardBatcher, RewardWorker
from vlarl_trainer.batch import Experience, build_batch
from vlarl_trainer.leader import LeadingRank, follow
from vlarl_trainer.learner import Snapshot
from vlarl_trainer.rollouts.collector import Collector
from vlarl_trainer.rollouts.trajectory_check import TrajectoryCheck

RUN = "scale"
STEPS = 220
"""The step limit of LIBERO-Spatial."""
FRAME_BYTES = 23_000
"""A JPEG of 256 px, quality 95."""
SIMULATORS = 16
"""Of each env server, which has its own connections to the queue."""
TIMEOUT_SECONDS = 120.0
ACTION_IDS = range(31744, 32000)
ACTION_DIM = 7

T = TypeVar("T")


def specs(episodes: int) -> list[rollout_pb2.EpisodeSpec]:
    """The orders of one iteration."""
    return [
        rollout_pb2.EpisodeSpec(
            episode_id=f"{RUN}:00000:{index:04d}",
            run_id=RUN,
            purpose=rollout_pb2.PURPOSE_TRAINING,
            task=rollout_pb2.Task(suite="libero_spatial", index=index % 10),
            placement_seed=index,
            temperature=1.5,
            record_frames=True,
        )
        for index in range(episodes)
    ]


class Frames:
    """As many different frames as an episode has; bytes that nothing can compress."""

    def __init__(self) -> None:
        generator = random.Random(7)
        self._frames = [
            b"\xff\xd8" + generator.randbytes(FRAME_BYTES - 2) for _ in range(STEPS + 1)
        ]

    def trajectory(self, spec: rollout_pb2.EpisodeSpec) -> rollout_pb2.Trajectory:
        """What a worker would have made of the order: every second episode fails."""
        turned = spec.placement_seed % len(self._frames)
        frames = self._frames[turned:] + self._frames[:turned]
        action = policy_pb2.Action(
            token_ids=[ACTION_IDS[index] for index in range(ACTION_DIM)],
            logprobs=[-0.5] * ACTION_DIM,
            values=[0.25] * ACTION_DIM,
            policy_version=1,
        )
        arm = rollout_pb2.RobotState(position=[0.1] * 3, quaternion=[0.5] * 4, gripper_opening=0.04)
        return rollout_pb2.Trajectory(
            spec=spec,
            instruction="pick up the black bowl between the plate and the ramekin",
            steps=[
                rollout_pb2.Step(image=frame, action=action, robot_state=arm, control_steps=1)
                for frame in frames[:-1]
            ],
            final_image=frames[-1],
            outcome=(
                rollout_pb2.OUTCOME_SUCCESS
                if spec.placement_seed % 2
                else rollout_pb2.OUTCOME_TIME_LIMIT
            ),
            worker="worker",
        )


def work(config: QueueConfig, episodes: int, pipe: Connection) -> None:
    """Env workers: take all orders, and push all trajectories at once when they are told to."""
    end_with_parent(signal.SIGTERM)
    asyncio.run(_work(config, episodes, pipe))


async def _work(config: QueueConfig, episodes: int, pipe: Connection) -> None:
    made = Frames()
    async with contextlib.AsyncExitStack() as stack:
        orders = []
        for index in range(episodes):
            if index % SIMULATORS == 0:
                queue = await stack.enter_async_context(RolloutQueue(config))
            order = await queue.next_episode(f"worker {index // SIMULATORS}", 10.0)
            if order is None:
                raise RuntimeError("the queue has too few orders")
            orders.append((queue, order))

        async def push() -> None:
            await asyncio.gather(
                *(
                    queue.finish_episode(order, made.trajectory(order.message))
                    for queue, order in orders
                )
            )

        await _part(pipe, "ready")
        await _timed(pipe, push)


def score(config: QueueConfig, pipe: Connection) -> None:
    """A reward server with the outcome reward: until nothing waits for its rewards."""
    end_with_parent(signal.SIGTERM)
    asyncio.run(_score(config, pipe))


async def _score(config: QueueConfig, pipe: Connection) -> None:
    batcher = RewardBatcher(OutcomeReward(1.0), RewardMetrics(CollectorRegistry()))
    async with RolloutQueue(config) as queue:
        worker = RewardWorker(queue, batcher, "reward", 8)

        async def score_all() -> None:
            while await queue._redis.xlen(TRAJECTORIES):
                await asyncio.sleep(0.01)

        await _part(pipe, "ready")
        working = asyncio.create_task(worker.run())
        await _timed(pipe, score_all)
        worker.stop()
        await working


class Reader:
    """In the learner's place: builds the batch and reads every frame, as decoding would."""

    def __init__(self) -> None:
        self.seen = 0

    def learn(self, experience: Experience) -> dict[str, float]:
        """A checksum over all frames, which must be equal on all ranks."""
        batch = build_batch(experience)
        for index in range(len(batch.frames)):
            self.seen = zlib.crc32(batch.frames[index], self.seen)
        return {"checksum": float(self.seen), "states": float(len(batch.frames))}

    def snapshot(self) -> Snapshot:
        """Nothing was learned."""
        return Snapshot({}, Checksums("float32", {}))

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """There is nothing to restore."""


def train(
    config: QueueConfig, episodes: int, pipe: Connection, environment: dict[str, str]
) -> None:
    """One rank of the trainer."""
    end_with_parent(signal.SIGTERM)
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    if ranks.first:
        asyncio.run(_lead(config, episodes, pipe, ranks))
    else:
        reader = Reader()
        pipe.send("ready")
        pipe.recv()
        follow(reader, ranks)  # type: ignore[arg-type]
        pipe.send(float(reader.seen))
        pipe.recv()
    ranks.leave()


async def _lead(config: QueueConfig, episodes: int, pipe: Connection, ranks: Ranks) -> None:
    keep_freed_memory()  # as the trainer does
    orders = specs(episodes)
    async with RolloutQueue(config) as queue:
        collector = Collector(queue, RUN, TIMEOUT_SECONDS)
        await collector.issue(orders)
        leading = LeadingRank(Reader(), ranks)  # type: ignore[arg-type]
        await _part(pipe, "ready")
        await leading.start(None)
        await _part(pipe, "issued")
        collected = await _timed(pipe, lambda: collector.collect(orders, learned=0, oldest=0))
        check = TrajectoryCheck(1, 0, 1.5, ACTION_IDS, ACTION_DIM)
        frames = collected.frames()
        await _timed(pipe, lambda: asyncio.to_thread(check.check, collected.trajectories, frames))
        experience = Experience(0, 1, collected.trajectories, frames)
        metrics, _ = await _timed(pipe, lambda: leading.learn(experience))
        await _timed(pipe, lambda: collector.settle(collected))
        await leading.dismiss()
        await _part(pipe, metrics)


async def _part(pipe: Connection, said: object) -> None:
    """Says it, and waits to be told to go on."""
    pipe.send(said)
    await asyncio.to_thread(pipe.recv)


async def _timed(pipe: Connection, part: Callable[[], Awaitable[T]]) -> T:
    """Does one part and tells how long it took; goes on when told to."""
    started = time.monotonic()
    result = await part()
    await _part(pipe, time.monotonic() - started)
    return result
