"""A reward server answers with finite numbers or not at all; the queue hears why."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import grpc
import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from vlarl.config import RunConfig, ServerConfig
from vlarl.policy.v1 import policy_pb2
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.reward.v1 import reward_pb2, reward_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.channel import open_channel
from vlarl.rpc.errors import reason
from vlarl.rpc.server import RpcServer
from vlarl_reward.metrics import RewardMetrics
from vlarl_reward.models.base import NotFinite
from vlarl_reward.models.outcome import OutcomeReward
from vlarl_reward.server import SERVICE, RewardServicer
from vlarl_reward.worker import RewardBatcher, RewardWorker, score_all


class Diverged(OutcomeReward):
    """A model whose weights have become NaN, on failures alone."""

    name, version = "rprm", "v"

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> list[rollout_pb2.RewardScores]:
        scores = super().score(trajectories)
        for trajectory, one in zip(trajectories, scores, strict=True):
            if trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT:
                one.dense.extend([0.5, math.nan])
        return scores


def trajectory(success: bool, episode: str = "e") -> rollout_pb2.Trajectory:
    step = rollout_pb2.Step(action=policy_pb2.Action(token_ids=range(7)))
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(episode_id=episode, run_id="r"),
        steps=[step, step],
        outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
    )


def test_only_the_trajectory_concerned_is_without_scores() -> None:
    first, second, third = score_all(
        Diverged(1.0), [trajectory(True), trajectory(False), trajectory(True)]
    )
    assert isinstance(second, NotFinite)
    assert "reward model rprm v gives rewards that aren't finite numbers" in second.cause
    assert isinstance(first, rollout_pb2.RewardScores)
    assert isinstance(third, rollout_pb2.RewardScores)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nor_can_a_configuration_bring_one_in(value: float) -> None:
    for name in ("success_reward", "coefficient"):
        reward = {"model": "rprm", "checkpoint": "rewards/reach", name: value}
        with pytest.raises(ValidationError, match="finite number"):
            RunConfig.model_validate({"reward": reward})


async def test_a_client_gets_an_error_and_no_number() -> None:
    rpc = RpcServer(ServerConfig(listen="127.0.0.1:0"), [SERVICE])
    batcher = RewardBatcher(Diverged(1.0), RewardMetrics(rpc.registry))
    reward_pb2_grpc.add_RewardServiceServicer_to_server(RewardServicer(batcher), rpc.grpc)
    address = await rpc.start()
    async with open_channel(address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        request = reward_pb2.ScoreTrajectoryRequest(trajectory=trajectory(True))
        assert list((await stub.ScoreTrajectory(request)).scores.total) == [0, 1]
        request = reward_pb2.ScoreTrajectoryRequest(trajectory=trajectory(False))
        with pytest.raises(grpc.aio.AioRpcError, match="aren't finite numbers") as refused:
            await stub.ScoreTrajectory(request)
    await rpc.stop()
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert reason(refused.value) == "NOT_FINITE"


async def test_the_queue_hears_the_cause(queue: RolloutQueue) -> None:
    await queue.issue([trajectory(False).spec])
    delivery = await queue.next_episode("w")
    assert delivery is not None
    await queue.finish_episode(delivery, trajectory(False))
    batcher = RewardBatcher(Diverged(1.0), RewardMetrics(CollectorRegistry()))
    worker = RewardWorker(queue, batcher, "reward", 8)
    working = asyncio.create_task(worker.run())
    while not (letters := await queue.dead_letters()):
        await asyncio.sleep(0.02)
    worker.stop()
    await working
    assert "aren't finite numbers" in letters[0].cause
