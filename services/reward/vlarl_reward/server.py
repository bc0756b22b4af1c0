"""Entry of the reward server: one reward model, fed from the queue and from gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

import grpc

from vlarl.config import AlgorithmConfig, QueueConfig, RewardConfig, ServerConfig
from vlarl.config.reward_terms import reward_terms
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.reward.v1 import reward_pb2, reward_pb2_grpc
from vlarl.rpc.errors import Internal, InvalidRequest
from vlarl.rpc.server import RpcServer
from vlarl_reward.metrics import RewardMetrics
from vlarl_reward.models.base import NotFinite, Unscorable
from vlarl_reward.models.registry import load_reward_model
from vlarl_reward.worker import RewardBatcher, RewardWorker

log = logging.getLogger(__name__)

SERVICE = "vlarl.reward.v1.RewardService"


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """The reward model for clients that bring their own trajectories."""

    def __init__(self, batcher: RewardBatcher) -> None:
        self._batcher = batcher

    async def ScoreTrajectory(
        self,
        request: reward_pb2.ScoreTrajectoryRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> reward_pb2.ScoreTrajectoryResponse:
        """Scores one trajectory, in turn with those of the queue."""
        (result,) = await self._batcher.score([request.trajectory], "client")
        if isinstance(result, Unscorable):
            raise InvalidRequest(result.problems)
        if isinstance(result, NotFinite):
            raise Internal(result.cause, reason="NOT_FINITE")
        return reward_pb2.ScoreTrajectoryResponse(scores=result)

    async def GetRewardModel(
        self, request: reward_pb2.GetRewardModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> reward_pb2.GetRewardModelResponse:
        """Describes the model."""
        model = self._batcher.model
        return reward_pb2.GetRewardModelResponse(
            model=model.name, version=model.version, needs_frames=model.needs_frames
        )


async def serve(
    config: RewardConfig,
    algorithm: AlgorithmConfig,
    queue_config: QueueConfig,
    server: ServerConfig,
) -> None:
    """Serves until SIGTERM; what is in work then is finished, the rest handed back. algorithm: how
    the trainer learns from its scores.
    """
    rpc = RpcServer(server, [SERVICE])
    terms = reward_terms(config, algorithm)
    batcher = RewardBatcher(
        load_reward_model(config, algorithm), RewardMetrics(rpc.registry), terms
    )
    reward_pb2_grpc.add_RewardServiceServicer_to_server(RewardServicer(batcher), rpc.grpc)
    name = f"{socket.gethostname()}-{os.getpid()}"
    async with RolloutQueue(queue_config) as queue:
        worker = RewardWorker(queue, batcher, name, config.batch_trajectories)
        address = await rpc.start()
        working = asyncio.create_task(worker.run())
        rpc.set_serving(True)
        log.info("reward model %s serves on %s", batcher.model.name, address)

        async def drain() -> None:
            worker.stop()
            await working

        await rpc.serve_until_terminated(drain, watch=working)
