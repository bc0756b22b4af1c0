"""TrainerService: watch and steer a run, and give its weights to late replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from vlarl.rpc.errors import FailedPrecondition
from vlarl.trainer.v1 import trainer_pb2 as pb
from vlarl.trainer.v1 import trainer_pb2_grpc
from vlarl.weights.adapter import adapter_chunks, adapter_header
from vlarl_trainer.status import RunStatus

SERVICE = "vlarl.trainer.v1.TrainerService"
_Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Shows a `RunStatus`."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: _Context
    ) -> pb.GetStatusResponse:
        """Where the run stands."""
        status = self._status
        return pb.GetStatusResponse(
            run_id=status.run_id,
            state=status.state,
            iterations=status.iterations,
            policy_version=status.adapter.version if status.adapter else 0,
            outstanding_episodes=status.outstanding,
            latest=status.history[-1] if status.history else None,
        )

    async def GetWeights(
        self, request: pb.GetWeightsRequest, context: _Context
    ) -> AsyncIterator[pb.GetWeightsResponse]:
        """The adapter published last; nothing before the first, or where the caller serves it."""
        adapter = self._status.adapter
        if adapter is None:
            return
        if request.base_digest and request.base_digest != adapter.base_digest:
            raise FailedPrecondition(
                f"this run trains base checkpoint {adapter.base_digest[:12]}, the caller has "
                f"{request.base_digest[:12]}",
                reason="OTHER_BASE",
            )
        if (request.run_id, request.policy_version) == (adapter.run_id, adapter.version):
            return
        yield pb.GetWeightsResponse(header=await asyncio.to_thread(adapter_header, adapter))
        for chunk in adapter_chunks(adapter):
            yield pb.GetWeightsResponse(chunk=chunk)

    async def WatchIterations(
        self, request: pb.WatchIterationsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchIterationsResponse]:
        """Each iteration as it completes."""
        async for iteration in self._status.watch(request.from_iteration):
            yield pb.WatchIterationsResponse(iteration=iteration)

    async def Pause(self, request: pb.PauseRequest, context: _Context) -> pb.PauseResponse:
        """Stops the run before its next iteration."""
        self._status.pause()
        return pb.PauseResponse(state=self._status.state)

    async def Resume(self, request: pb.ResumeRequest, context: _Context) -> pb.ResumeResponse:
        """Goes on after Pause."""
        self._status.resume()
        return pb.ResumeResponse(state=self._status.state)

    async def Checkpoint(
        self, request: pb.CheckpointRequest, context: _Context
    ) -> pb.CheckpointResponse:
        """Every iteration ends with a checkpoint: waits for the one in progress."""
        path = await self._status.next_checkpoint()
        if path is None:
            raise FailedPrecondition("no iteration has been completed", reason="NO_CHECKPOINT")
        done = len(self._status.history)
        return pb.CheckpointResponse(path=str(path), iteration=done)
