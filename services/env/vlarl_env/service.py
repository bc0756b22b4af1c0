"""EnvService: LIBERO for clients in any language."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.rpc.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
    Violation,
)
from vlarl_env.commands import too_long, wrong_actions
from vlarl_env.errors import CommandRefusedError, SimulatorError, UnknownTaskError
from vlarl_env.metrics import EnvMetrics
from vlarl_env.pool import SimulatorPool
from vlarl_env.process import SimulatorProcess
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_env.tasks import list_tasks

MAX_CONTROL_STEPS = 10_000
"""Control steps that one episode may ask for."""

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[env_pb2.InteractRequest]


class EnvServicer(env_pb2_grpc.EnvServiceServicer):
    """Lends the pool's simulators, at most `external_processes` of them at once."""

    def __init__(
        self, pool: SimulatorPool, catalog: TaskCatalog, config: EnvConfig, metrics: EnvMetrics
    ) -> None:
        self._pool = pool
        self._catalog = catalog
        self._config = config
        self._metrics = metrics
        self._bound = min(config.external_processes, config.processes)
        self._lent = 0

    async def ListTasks(
        self,
        request: env_pb2.ListTasksRequest,
        context: Context,  # noqa: ARG002
    ) -> env_pb2.ListTasksResponse:
        """Names every task that can be asked for."""
        try:
            return list_tasks(self._catalog, request.suite)
        except UnknownTaskError as error:
            raise InvalidRequest([("suite", str(error))]) from error

    async def Interact(
        self,
        requests: Requests,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[env_pb2.InteractResponse]:
        """Runs one episode for a client."""
        first = await self._next(requests)
        if first is None:
            return
        if first.WhichOneof("command") != "reset":
            raise InvalidRequest([("reset", "the stream's first message must be a reset")])
        self._check_reset(first.reset)
        self._admit()
        outcome = "abandoned"
        try:
            async with self._pool.slot() as slot:
                simulator = slot.simulator(first.reset.task)
                answer = await simulator.reset(first.reset)
                yield answer
                while (request := await self._next(requests)) is not None:
                    answer = await self._step(simulator, answer, request)
                    if answer.terminated or answer.truncated:
                        outcome = "success" if answer.terminated else "time_limit"
                    yield answer
        except CommandRefusedError as error:
            raise InvalidRequest([("command", str(error))]) from error
        except SimulatorError as error:
            outcome = "failed"
            text = f"the episode's simulator is lost and will be replaced: {error}"
            raise Unavailable(text, reason="SIMULATOR_LOST") from error
        finally:
            self._lent -= 1
            self._metrics.episodes.labels("client", outcome).inc()

    def _admit(self) -> None:
        if self._bound == 0:
            text = "this server's simulators work for the queue alone (env.external_processes = 0)"
            raise FailedPrecondition(text, reason="NOT_LENT")
        if self._lent >= self._bound:
            text = f"all simulators for clients ({self._bound}) are lent out"
            raise ResourceExhausted(text, reason="ALL_LENT")
        self._lent += 1

    async def _next(self, requests: Requests) -> env_pb2.InteractRequest | None:
        """The client's next message; None at the end of its stream."""
        seconds = self._config.external_idle_seconds
        try:
            async with asyncio.timeout(seconds):
                return await anext(requests, None)
        except TimeoutError as error:
            text = f"no command for {seconds:g} s; the simulator goes to somebody else"
            raise DeadlineExceeded(text, reason="IDLE") from error

    async def _step(
        self,
        simulator: SimulatorProcess,
        before: env_pb2.InteractResponse,
        request: env_pb2.InteractRequest,
    ) -> env_pb2.InteractResponse:
        if request.WhichOneof("command") != "step":
            text = "every message after the first is a step; open another stream to start anew"
            raise InvalidRequest([("step", text)])
        if before.terminated or before.truncated:
            raise FailedPrecondition("the episode has ended", reason="EPISODE_ENDED")
        problems: list[Violation] = []
        if wrong := wrong_actions(request.step):
            problems.append(("step.action", wrong))
        if long := too_long(request.step, self._config.action_repeat):
            problems.append(long)
        if problems:
            raise InvalidRequest(problems)
        return await simulator.step(request.step)

    def _check_reset(self, reset: env_pb2.ResetEpisode) -> None:
        problems: list[Violation] = []
        try:
            task = self._catalog.find(reset.task.suite, reset.task.index)
        except UnknownTaskError as error:
            raise InvalidRequest([("reset.task", str(error))]) from error
        match reset.WhichOneof("placement"):
            case None:
                problems.append(("reset.placement", "init_state or placement_seed is needed"))
            case "init_state" if reset.init_state >= task.init_states:
                text = f"the task has {task.init_states} official initial states, from 0"
                problems.append(("reset.init_state", text))
        if reset.max_control_steps > MAX_CONTROL_STEPS:
            problems.append(("reset.max_control_steps", f"at most {MAX_CONTROL_STEPS}"))
        if len(set(reset.cameras)) != len(reset.cameras):
            problems.append(("reset.cameras", "each camera at most once"))
        if problems:
            raise InvalidRequest(problems)
