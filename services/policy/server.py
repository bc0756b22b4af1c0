"""`vlarl serve policy`: the parts of a policy server, wired together.

listen (NOT_SERVING) ──▶ load the checkpoint ──▶ fetch the trainer's latest adapter
──▶ produce one action ──▶ SERVING ──▶ SIGTERM: drain, stop
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc
import numpy as np

from services.policy.engine import PolicyEngine
from services.policy.metrics import PolicyMetrics
from services.policy.service import PolicyServicer
from services.policy.swap import SwapFailedError, WeightsLostError, WeightSwapper
from vlarl.adapter import AdapterError
from vlarl.config import ChannelConfig, PolicyConfig, ServerConfig
from vlarl.errors import FatalError
from vlarl.openvla.checkpoint import base_digest
from vlarl.openvla.config import OpenVLAConfig
from vlarl.openvla.lora import lora_layers
from vlarl.openvla.prompt import PromptBuilder
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.channel import open_channel
from vlarl.rpc.errors import describe
from vlarl.rpc.server import RpcServer
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc

_LOG = logging.getLogger(__name__)
_SERVICE = "vlarl.policy.v1.PolicyService"
_WATCH_SECONDS = 1.0
_TRAINER_SECONDS = 120.0


class PolicyServerError(FatalError):
    """The policy server can't go on; the message is one sentence for the log."""


async def serve(
    config: PolicyConfig, server: ServerConfig, trainer_channel: ChannelConfig | None = None
) -> None:
    """Runs a policy server until SIGTERM.

    Args:
        config: the checkpoint and the engine.
        server: where to listen.
        trainer_channel: credentials for `config.trainer_address`; none: the server's own token.

    Raises:
        PolicyServerError: the engine didn't start, died, or lost its weights; the trainer's
            adapter doesn't fit.
        ConfigError, CheckpointError: the checkpoint can't be used.
        ListenError: the address can't be bound.
    """
    model = OpenVLAConfig.from_directory(config.checkpoint)
    digest = await asyncio.to_thread(base_digest, config.checkpoint)
    rpc = RpcServer(server, [_SERVICE])
    metrics = PolicyMetrics(rpc.registry)
    servicer = PolicyServicer(config, model, digest, metrics)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, rpc.grpc)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(servicer.close)
        await stack.enter_async_context(rpc)
        try:
            engine = await PolicyEngine.start(config, model, metrics)
        except (RuntimeError, ValueError) as error:
            raise PolicyServerError(f"the engine didn't start: {error}") from error
        stack.callback(engine.shutdown)
        swapper = WeightSwapper(engine, lora_layers(model), digest, metrics)
        if config.trainer_address:
            channel = trainer_channel or ChannelConfig(token_file=server.token_file)
            await fetch_weights(config.trainer_address, channel, digest, swapper)
        await _warm_up(engine, config, model)
        servicer.open(engine, swapper)
        rpc.set_serving(True)
        _LOG.info("%s serves at version %d", model.name, swapper.serving.version)
        watch = asyncio.create_task(_until_lost(engine, servicer.lost))
        stack.callback(watch.cancel)
        await rpc.serve_until_terminated(watch=watch)


async def fetch_weights(
    address: str, channel_config: ChannelConfig, digest: str, swapper: WeightSwapper
) -> None:
    """Swaps in the adapter that the trainer published last.

    A trainer that can't be reached isn't an error: it may start after this server, and publishes
    to it then.

    Raises:
        PolicyServerError: the trainer refuses, or its adapter doesn't fit this checkpoint.
    """
    async with open_channel(address, channel_config) as channel:
        call = trainer_pb2_grpc.TrainerServiceStub(channel).GetWeights(
            trainer_pb2.GetWeightsRequest(base_digest=digest), timeout=_TRAINER_SECONDS
        )

        async def parts() -> AsyncIterator[pb.AdapterHeader | pb.AdapterChunk]:
            async for answer in call:
                yield answer.header if answer.WhichOneof("part") == "header" else answer.chunk

        try:
            stream = parts()
            header = await anext(stream, None)
            if header is None:
                _LOG.info("trainer %s has published nothing yet", address)
                return
            await swapper.update(_chain(header, stream))
        except (AdapterError, SwapFailedError, WeightsLostError) as error:
            raise PolicyServerError(f"the adapter of trainer {address}: {error}") from error
        except grpc.aio.AioRpcError as error:
            if error.code() not in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            ):
                raise PolicyServerError(f"trainer {address}: {describe(error)}") from error
            _LOG.warning("the base checkpoint serves, no trainer: %s", describe(error))


async def _chain(
    first: pb.AdapterHeader | pb.AdapterChunk,
    rest: AsyncIterator[pb.AdapterHeader | pb.AdapterChunk],
) -> AsyncIterator[pb.AdapterHeader | pb.AdapterChunk]:
    yield first
    async for part in rest:
        yield part


async def _warm_up(engine: PolicyEngine, config: PolicyConfig, model: OpenVLAConfig) -> None:
    # One real action, which proves that the server can answer.
    pixels = np.full((model.image_size, model.image_size, 3), 127, np.uint8)
    prompt_ids = PromptBuilder(config.checkpoint).token_ids("pick up the black bowl")
    await engine.act(prompt_ids, pixels, temperature=0.0, seed=None)


async def _until_lost(engine: PolicyEngine, lost: asyncio.Future[str]) -> None:
    # An engine may die while nobody asks it anything.
    while engine.alive:
        done, _ = await asyncio.wait({lost}, timeout=_WATCH_SECONDS)
        if done:
            raise PolicyServerError(lost.result())
    raise PolicyServerError("the engine's process died")
