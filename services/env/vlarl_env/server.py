"""Entry of the env server: simulators, the queue's worker, and gRPC for external clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

from vlarl.clients.policy import AsyncPolicyClient
from vlarl.config import RunConfig, ServerConfig
from vlarl.env.v1 import env_pb2_grpc
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rpc.server import RpcServer
from vlarl_env.devices import egl_devices
from vlarl_env.metrics import EnvMetrics
from vlarl_env.pool import SimulatorPool
from vlarl_env.service import EnvServicer
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_env.worker import EnvWorker

logger = logging.getLogger(__name__)

SERVICE = "vlarl.env.v1.EnvService"

_DRAIN_SHARE = 0.6
"""Share of the drain's seconds in which episodes may still finish."""


async def serve(run: RunConfig, server: ServerConfig, *, with_queue: bool = True) -> None:
    """Serves until SIGTERM; short episodes are finished then, the rest handed back.

    Args:
        run: The env, queue, policy and security sections are used.
        server: How to listen.
        with_queue: Whether to work for the rollout queue too.
    """
    config = run.env
    catalog = TaskCatalog(config.bddl_directories)
    rpc = RpcServer(server, [SERVICE])
    metrics = EnvMetrics(rpc.registry)
    devices = egl_devices(os.environ)
    simulators = SimulatorPool(config, devices, metrics)
    servicer = EnvServicer(simulators, catalog, config, metrics)
    env_pb2_grpc.add_EnvServiceServicer_to_server(servicer, rpc.grpc)
    async with rpc, contextlib.AsyncExitStack() as stack:
        queue = await stack.enter_async_context(RolloutQueue(run.queue)) if with_queue else None
        pool = await stack.enter_async_context(simulators)
        drawing = f"GPUs {devices}" if devices else "software"
        logger.info("%d %s simulators draw with %s", config.processes, config.profile, drawing)
        if queue is None:
            rpc.set_serving(True)
            await rpc.serve_until_terminated()
            return
        policy = await stack.enter_async_context(
            AsyncPolicyClient(
                run.policy.addresses,
                token_file=run.security.token_file,
                tls_ca=run.security.tls_ca,
                tls_certificate=run.security.tls_client_certificate,
                tls_key=run.security.tls_client_key,
            )
        )
        name = f"{socket.gethostname()}-{os.getpid()}"
        worker = EnvWorker(queue, pool, policy, catalog, config, metrics, name)
        working = asyncio.create_task(worker.run())
        stack.push_async_callback(_end, working)
        rpc.set_serving(True)
        await rpc.serve_until_terminated(
            lambda: worker.drain(server.drain_seconds * _DRAIN_SHARE), watch=working
        )


async def _end(working: asyncio.Task[None]) -> None:
    """Cancels the worker, which hands back what it still holds."""
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
