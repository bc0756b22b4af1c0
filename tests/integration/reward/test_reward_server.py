"""The reward server as a process: from the queue, over gRPC, and when it is told to go."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.conftest import Valkey
from vlarl.policy.v1 import policy_pb2
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.reward.v1 import reward_pb2, reward_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.channel import open_channel, wait_until_serving
from vlarl.rpc.errors import violations


def finished(spec: rollout_pb2.EpisodeSpec, outcome: rollout_pb2.Outcome) -> rollout_pb2.Trajectory:
    step = rollout_pb2.Step(action=policy_pb2.Action(token_ids=range(7)))
    return rollout_pb2.Trajectory(spec=spec, steps=[step, step], outcome=outcome)


@pytest.fixture
async def server(valkey: Valkey, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vlarl", "serve", "reward", "--listen", "127.0.0.1:0"),
        *("--address-file", tmp_path / "address", "--set", f"queue.url={valkey.url}"),
        *("--metrics-listen", "127.0.0.1:0"),
    )
    while not (tmp_path / "address").exists():
        assert process.returncode is None
        await asyncio.sleep(0.02)
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.fixture
async def channel(
    server: asyncio.subprocess.Process, tmp_path: Path
) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel((tmp_path / "address").read_text().strip()) as opened:
        await wait_until_serving(opened, "vlarl.reward.v1.RewardService", 20)
        yield opened


async def test_trajectories_are_scored_on_their_way_to_the_trainer(
    channel: grpc.aio.Channel, queue: RolloutQueue
) -> None:
    specs = [rollout_pb2.EpisodeSpec(episode_id=f"e{i}", run_id="r") for i in range(6)]
    await queue.issue(specs)
    for index in range(6):
        delivery = await queue.next_episode("w")
        assert delivery is not None
        outcome = rollout_pb2.OUTCOME_SUCCESS if index % 2 else rollout_pb2.OUTCOME_TIME_LIMIT
        await queue.finish_episode(delivery, finished(delivery.message, outcome))
    scored = []
    while len(scored) < 6:
        scored += await queue.next_scored("r", 8)
    totals = {d.message.spec.episode_id: list(d.message.scores.total) for d in scored}
    assert totals == {f"e{i}": [0.0, float(i % 2)] for i in range(6)}


async def test_a_trajectory_that_cannot_be_scored_is_a_dead_letter(
    channel: grpc.aio.Channel, queue: RolloutQueue
) -> None:
    await queue.issue([rollout_pb2.EpisodeSpec(episode_id="bad", run_id="r")])
    delivery = await queue.next_episode("w")
    assert delivery is not None
    await queue.finish_episode(delivery, rollout_pb2.Trajectory(spec=delivery.message))
    while not (letters := await queue.dead_letters("r")):
        await asyncio.sleep(0.05)
    assert (letters[0].stage, letters[0].cause) == (
        "reward",
        "trajectory.steps must have at least one step",
    )


async def test_it_goes_on_where_the_queue_was_emptied(
    channel: grpc.aio.Channel, queue: RolloutQueue
) -> None:
    for episode in ("before", "after"):
        await queue.issue([rollout_pb2.EpisodeSpec(episode_id=episode, run_id="r")])
        delivery = await queue.next_episode("w")
        assert delivery is not None
        await queue.finish_episode(
            delivery, finished(delivery.message, rollout_pb2.OUTCOME_TIME_LIMIT)
        )
        while not (scored := await queue.next_scored("r", 1)):
            pass
        assert scored[0].message.spec.episode_id == episode
        await queue._redis.flushall()


async def test_clients_score_their_own_trajectories(channel: grpc.aio.Channel) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    model = await stub.GetRewardModel(reward_pb2.GetRewardModelRequest())
    assert (model.model, model.version, model.needs_frames) == ("outcome", "1", False)
    solved = finished(rollout_pb2.EpisodeSpec(), rollout_pb2.OUTCOME_SUCCESS)
    answer = await stub.ScoreTrajectory(reward_pb2.ScoreTrajectoryRequest(trajectory=solved))
    assert list(answer.scores.total) == [0.0, 1.0]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ScoreTrajectory(reward_pb2.ScoreTrajectoryRequest())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in violations(refused.value)] == [
        "trajectory.steps",
        "trajectory.outcome",
    ]


async def test_sigterm_ends_it_cleanly(
    channel: grpc.aio.Channel, server: asyncio.subprocess.Process
) -> None:
    server.terminate()
    assert await asyncio.wait_for(server.wait(), 20) == 0
