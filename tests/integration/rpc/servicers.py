# ruff: noqa: ANN401 - messages are read as they come
"""Servicers that are small but real: all four kinds of methods, and ways to misbehave."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.errors import FailedPrecondition, InvalidRequest, ServiceError, Unavailable
from vlarl.rpc.server import RpcServer

POLICY = "vlarl.policy.v1.PolicyService"
ENV = "vlarl.env.v1.EnvService"


class DataLossError(ServiceError):
    """Bytes arrived that aren't those that were announced."""

    code = grpc.StatusCode.DATA_LOSS


class EchoPolicy(policy_pb2_grpc.PolicyServiceServicer):
    """Its action tells what arrived; an instruction may ask for trouble."""

    def __init__(self) -> None:
        self.calls = 0
        self.unavailable = 0
        """Next calls that are refused as UNAVAILABLE."""
        self.seconds = 0.0
        """That an answer takes at least."""
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.images: list[bytes] = []
        self.observations: list[policy_pb2.Observation] = []
        self.metadata: dict[str, Any] = {}
        self.horizon = 0
        """Control steps of an answer; step after step, values are 1 higher. 0: not said."""
        self.described: policy_pb2.GetPolicyResponse | None = None
        """What GetPolicy answers, where it is offered."""

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        if self.described is None:
            return super().GetPolicy(request, context)
        return self.described

    async def PredictActions(self, request: Any, context: Any) -> Any:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        if self.unavailable:
            self.unavailable -= 1
            raise Unavailable("the engine is restarting")
        self.images += [o.image for o in request.observations]
        self.observations += request.observations
        await self._trouble(request.observations[0].instruction)
        await asyncio.sleep(self.seconds)
        return policy_pb2.PredictActionsResponse(
            actions=[_act(request, o, self.horizon) for o in request.observations]
        )

    async def _trouble(self, wish: str) -> None:
        self.started.set()
        if wish == "be strict":
            raise InvalidRequest([("observations[0].image", "not a picture"), ("unnorm_key", "?")])
        if wish == "crash":
            raise ZeroDivisionError("a secret detail")
        if wish == "hang":
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> Any:
        received, version = 0, 0
        async for part in request_iterator:
            if part.HasField("header"):
                version = part.header.version
            elif part.chunk.tensor == 9:
                raise DataLossError("tensor 9's checksum is wrong", reason="CHECKSUM")
            received += len(part.chunk.data)
        if version < 1:
            raise FailedPrecondition("version 0 is older than 1", reason="OLDER_VERSION")
        return policy_pb2.UpdateWeightsResponse(policy_version=version, bytes=received)


def _act(request: Any, observation: Any, horizon: int) -> Any:
    steps = max(horizon, 1)
    digest = hashlib.sha256(observation.image).digest()
    return policy_pb2.Action(
        token_ids=[32_000 - byte for byte in digest[:7]] * steps,
        logprobs=[-request.temperature] * 7 * steps,
        values=[observation.seed + step for step in range(steps) for _ in range(7)],
        policy_version=3,
        horizon=horizon,
    )


class EchoEnv(env_pb2_grpc.EnvServiceServicer):
    """An episode that counts its steps."""

    def __init__(self) -> None:
        self.open_episodes = 0
        self.closed = asyncio.Event()
        self.last_step = 0
        """Control steps after which an episode is over; 0: it never is."""
        self.actions: list[list[float]] = []
        """Of steps, as they arrived."""

    async def ListTasks(self, request: Any, context: Any) -> Any:
        task = env_pb2.TaskDescription(name=request.suite)
        return env_pb2.ListTasksResponse(tasks=[task])

    async def Interact(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.open_episodes += 1
        try:
            steps = 0
            async for request in request_iterator:
                if request.HasField("step") and request.step.action[-1] not in (0, 1):
                    raise InvalidRequest([("step.action", "the gripper's must be 0 or 1")])
                executed = max(1, request.step.horizon) if request.HasField("step") else 0
                steps += executed
                if executed:
                    self.actions.append(list(request.step.action))
                yield env_pb2.InteractResponse(
                    control_steps=steps,
                    executed=executed,
                    terminated=0 < self.last_step <= steps,
                    frames=[
                        env_pb2.Frame(camera=camera, image=f"{camera} {steps}".encode())
                        for camera in ("agentview", "robot0_eye_in_hand")
                    ],
                    robot_state=rollout_pb2.RobotState(proprio=range(8)),
                )
        finally:
            self.open_episodes -= 1
            self.closed.set()


class Served:
    """A running server with its servicers at hand."""

    def __init__(self, server: RpcServer, policy: EchoPolicy, env: EchoEnv, address: str) -> None:
        self.server = server
        self.policy = policy
        self.env = env
        self.address = address

    def handled(self, method: str, code: str, service: str = POLICY) -> float:
        """The counter of ended calls."""
        labels = {"grpc_service": service, "grpc_method": method, "grpc_code": code}
        value = self.server.registry.get_sample_value("grpc_server_handled_total", labels)
        return value or 0.0

    async def counts(self, method: str, code: str, wanted: int) -> None:
        """Waits for the counter of failed calls: the client has its status before they are counted.

        Raises:
            AssertionError: the count isn't `wanted` after some seconds.
        """
        await eventually(lambda: self.handled(method, code) == wanted)


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds.

    Raises:
        AssertionError: it doesn't after some seconds.
    """
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not after 10 seconds")


Serve = Callable[..., Awaitable[Served]]
