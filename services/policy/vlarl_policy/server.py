"""`vlarl serve policy`: the parts of a policy server, wired together.

listen (NOT_SERVING) ──▶ load the checkpoint ──▶ fetch the trainer's latest adapter
──▶ produce one action ──▶ SERVING, follow the trainer ──▶ SIGTERM: drain, stop
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import numpy as np

from vlarl.config import ChannelConfig, PolicyConfig, ServerConfig
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.openvla.tokens import ActionTokenizer
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.server import RpcServer
from vlarl.weights.checkpoint import base_digest
from vlarl_policy.follower import PolicyServerError, WeightFollower
from vlarl_policy.metrics import PolicyMetrics
from vlarl_policy.service import PolicyServicer, UnsoundActionError, action_of
from vlarl_policy.swap import WeightSwapper
from vlarl_policy.vllm_engine import PolicyEngine

_LOG = logging.getLogger(__name__)
_SERVICE = "vlarl.policy.v1.PolicyService"
_WATCH_SECONDS = 1.0


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
            adapter doesn't fit; the weights give no finite numbers.
        ConfigError, CheckpointError: the checkpoint can't be used.
        ListenError: the address can't be bound.
    """
    model = OpenVLAConfig.from_directory(config.checkpoint)
    _LOG.info("%s: %s", model.name, model.usage(center_crop=config.center_crop))
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
        trainer = None
        if config.trainer_address:
            channel = trainer_channel or ChannelConfig(token_file=server.token_file)
            trainer = WeightFollower(config.trainer_address, channel, digest, swapper)
            await trainer.fetch_first()
        await _warm_up(engine, config, model)
        servicer.open(engine, swapper)
        rpc.set_serving(True)
        _LOG.info("%s serves at version %d", model.name, swapper.serving.version)
        watch = asyncio.create_task(_until_lost(engine, servicer.lost))
        stack.callback(watch.cancel)
        if trainer:
            following = asyncio.create_task(trainer.follow(config.catch_up_seconds, servicer.lose))
            stack.callback(following.cancel)
        await rpc.serve_until_terminated(watch=watch)


async def _warm_up(engine: PolicyEngine, config: PolicyConfig, model: OpenVLAConfig) -> None:
    # One real action, which proves that the server can answer.
    pixels = np.full((model.image_size, model.image_size, 3), 127, np.uint8)
    prompt_ids = PromptBuilder(config.checkpoint).token_ids("pick up the black bowl")
    sampled = await engine.act(prompt_ids, pixels, temperature=0.0, seed=None)
    statistics = next(iter(model.norm_stats.values()))
    try:
        action_of(sampled, statistics, ActionTokenizer(model.action_vocab_size))
    except UnsoundActionError as error:
        raise PolicyServerError(f"{config.checkpoint}: {error}") from error


async def _until_lost(engine: PolicyEngine, lost: asyncio.Future[str]) -> None:
    # An engine may die while nobody asks it anything.
    while engine.alive:
        done, _ = await asyncio.wait({lost}, timeout=_WATCH_SECONDS)
        if done:
            raise PolicyServerError(lost.result())
    raise PolicyServerError("the engine's process died")
