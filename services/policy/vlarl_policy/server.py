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
from vlarl.images import encode_jpeg
from vlarl.models.base import Processor
from vlarl.models.registry import policy_family
from vlarl.models.serving import Observation
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
    family = policy_family(config.checkpoint)
    spec = family.spec
    _LOG.info("%s: %s", spec.name, spec.usage(center_crop=config.center_crop))
    digest = await asyncio.to_thread(base_digest, config.checkpoint)
    rpc = RpcServer(server, [_SERVICE])
    metrics = PolicyMetrics(rpc.registry)
    processor = family.processor(spec.crops(config.center_crop))
    servicer = PolicyServicer(config, processor, digest, metrics)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, rpc.grpc)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(servicer.close)
        await stack.enter_async_context(rpc)
        try:
            engine = await PolicyEngine.start(config, spec.name, family.serving(), metrics)
        except (RuntimeError, ValueError) as error:
            raise PolicyServerError(f"the engine didn't start: {error}") from error
        stack.callback(engine.shutdown)
        swapper = WeightSwapper(engine, family.lora_layers(), digest, metrics)
        trainer = None
        if config.trainer_address:
            channel = trainer_channel or ChannelConfig(token_file=server.token_file)
            trainer = WeightFollower(config.trainer_address, channel, digest, swapper)
            await trainer.fetch_first()
        await _warm_up(engine, config, processor)
        servicer.open(engine, swapper)
        rpc.set_serving(True)
        _LOG.info("%s serves at version %d", spec.name, swapper.serving.version)
        watch = asyncio.create_task(_until_lost(engine, servicer.lost))
        stack.callback(watch.cancel)
        if trainer:
            following = asyncio.create_task(trainer.follow(config.catch_up_seconds, servicer.lose))
            stack.callback(following.cancel)
        await rpc.serve_until_terminated(watch=watch)


async def _warm_up(engine: PolicyEngine, config: PolicyConfig, processor: Processor) -> None:
    # One real action, which proves that the server can answer.
    spec = processor.spec
    grey = encode_jpeg(np.full((spec.image_size, spec.image_size, 3), 127, np.uint8))
    key, statistics = next(iter(spec.norm_stats.items()))
    observation = Observation(
        images=[grey] * len(spec.cameras),
        instruction="pick up the black bowl",
        proprio=[0.0] * spec.proprio_dim,
        unnorm_key=key,
    )
    sampled = await engine.act(processor.encode(observation), temperature=0.0, seed=None)
    try:
        action_of(sampled, statistics, processor)
    except UnsoundActionError as error:
        wider = ""
        if engine.dtype == "float16":
            wider = (
                ". Numbers of float16 end at 65,504: if the checkpoint is sound, set policy.dtype "
                'and trainer.dtype to "bfloat16"'
            )
        raise PolicyServerError(f"{config.checkpoint}: {error}{wider}") from error


async def _until_lost(engine: PolicyEngine, lost: asyncio.Future[str]) -> None:
    # An engine may die while nobody asks it anything.
    while engine.alive:
        done, _ = await asyncio.wait({lost}, timeout=_WATCH_SECONDS)
        if done:
            raise PolicyServerError(lost.result())
    raise PolicyServerError("the engine's process died")
