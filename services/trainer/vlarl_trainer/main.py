"""`vlarl train`: one rank of a trainer. Rank 0 wires queue, replicas, service and loop together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import torch

from vlarl.allocator import keep_freed_memory
from vlarl.config import RunConfig, ServerConfig
from vlarl.config.resuming import check_terms, terms
from vlarl.config.reward_terms import reward_terms
from vlarl.disk import explained
from vlarl.learning.checkpoints import ResumeError
from vlarl.learning.ranks import Ranks
from vlarl.models.meaning import chosen_unnorm_key, meaning_terms
from vlarl.models.registry import policy_spec
from vlarl.models.spec import PolicySpec
from vlarl.queue.gauges import watched
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rpc.server import RpcServer
from vlarl.trainer.v1 import trainer_pb2_grpc
from vlarl.weights.checkpoint import base_digest
from vlarl_trainer.leader import LeadingRank, follow
from vlarl_trainer.learner import Learner
from vlarl_trainer.loop import TrainingLoop, iteration_message
from vlarl_trainer.publisher import Publisher, check_policy
from vlarl_trainer.record.console import Display
from vlarl_trainer.record.evaluation import EvaluationLog
from vlarl_trainer.record.machine import record_start
from vlarl_trainer.record.metrics import MetricsLog
from vlarl_trainer.record.progress import Progress, run_checkpoints
from vlarl_trainer.rollouts.collector import Collector
from vlarl_trainer.rollouts.reward_hacking import hovering_pays
from vlarl_trainer.rollouts.trajectory_check import TrajectoryCheck
from vlarl_trainer.server import SERVICE, TrainerServicer
from vlarl_trainer.status import RunStatus

_LOG = logging.getLogger(__name__)
_DRAIN_SECONDS = 3.0


def run(config: RunConfig, run_dir: Path, *, metrics_listen: str | None = None) -> None:
    """Trains from the run's last checkpoint, or from the start where there is none.

    Under torchrun every rank calls it.

    Args:
        config: the run; its name is the run's id.
        run_dir: receives starts.jsonl, metrics.jsonl, evaluations.jsonl, actions/, tensorboard/,
            wandb/ and checkpoints/, and disagreement-*.npz where log-probs disagree.
        metrics_listen: HOST:PORT of rank 0's Prometheus endpoint.

    Raises:
        FatalError: the run can't go on; the message says why and what to do.
        KeyboardInterrupt: SIGTERM or SIGINT came before the end.
    """
    with explained(run_dir), Ranks.joined(config.trainer.threads) as ranks:
        if ranks.first and (warning := hovering_pays(config)):
            _LOG.warning("%s", warning)
        model = policy_spec(config.policy.checkpoint)
        learner = Learner(
            config.policy.checkpoint,
            config.trainer,
            center_crop=model.crops(config.policy.center_crop),
            seed=config.seed,
            ranks=ranks,
            success_reward=config.reward.success_reward,
        )
        if ranks.first:
            _LOG.info("%s (trainer.memory_gib)", learner.placement)
            asyncio.run(_lead(config, run_dir, model, learner, ranks, metrics_listen))
        else:
            follow(learner, ranks)


async def _lead(
    config: RunConfig,
    run_dir: Path,
    model: PolicySpec,
    learner: Learner,
    ranks: Ranks,
    metrics_listen: str | None,
) -> None:
    """Rank 0: serves TrainerService while the loop runs."""
    keep_freed_memory()  # in which trajectories are received, one after another
    rpc = RpcServer(_server_config(config, metrics_listen), [SERVICE])
    status = RunStatus(config.name, config.trainer.iterations)
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(TrainerServicer(status), rpc.grpc)
    async with rpc, RolloutQueue(config.queue) as queue, watched(queue, rpc.registry):
        rpc.set_serving(True)
        training = asyncio.create_task(
            _train(config, run_dir, model, learner, ranks, rpc, status, queue)
        )

        async def stop_training() -> None:
            training.cancel()
            await asyncio.wait([training])

        await rpc.serve_until_terminated(stop_training, watch=training)
    # One that a drain's time was too short for, or a second signal cut, isn't at its end, either.
    if not training.done() or training.cancelled():
        raise KeyboardInterrupt


async def _train(
    config: RunConfig,
    run_dir: Path,
    model: PolicySpec,
    learner: Learner,
    ranks: Ranks,
    rpc: RpcServer,
    status: RunStatus,
    queue: RolloutQueue,
) -> None:
    trainer = config.trainer
    publisher = Publisher.of_run(config)
    digest = await asyncio.to_thread(base_digest, config.policy.checkpoint)
    for policy in await publisher.describe():
        check_policy(policy, model, digest, config.policy.center_crop)
    progress, tensors = _last_checkpoint(config, run_dir, digest)
    leading = LeadingRank(learner, ranks)
    snapshot = await leading.start(tensors)
    record_start(run_dir, progress.iteration, ranks)
    log = MetricsLog(run_dir, rpc.registry, config)
    log.show_bound(learner.logprob_gap_bound)
    latest = iteration_message(progress) if progress.iteration else None
    status.history = await asyncio.to_thread(log.resume, latest)  # wandb may be far away
    display = Display(config.name, trainer.iterations, progress.iteration)
    with contextlib.closing(log), contextlib.closing(display):
        loop = TrainingLoop(
            config=config,
            run_dir=run_dir,
            expectation=TrajectoryCheck.of_policy(
                model,
                version=progress.version,
                staleness=trainer.staleness,
                temperature=trainer.temperature,
            ),
            unnorm_key=chosen_unnorm_key(config, model),
            scaling=learner.policy.scaling,
            learner=leading,
            collector=Collector(
                queue,
                config.name,
                trainer.rollout_timeout_seconds,
                reward_terms(config.reward, trainer.chosen),
            ),
            publisher=publisher,
            status=status,
            log=log,
            evaluations=EvaluationLog(run_dir, progress.iteration),
            display=display,
        )
        await loop.run(progress, snapshot)
    await leading.dismiss()


def _server_config(config: RunConfig, metrics_listen: str | None) -> ServerConfig:
    return config.security.secured(
        ServerConfig(
            listen=config.trainer.address,
            metrics_listen=metrics_listen,
            drain_seconds=_DRAIN_SECONDS,
        )
    )


def _last_checkpoint(
    config: RunConfig, run_dir: Path, digest: str
) -> tuple[Progress, dict[str, torch.Tensor] | None]:
    checkpoints = run_checkpoints(run_dir)
    checkpoints.recover()
    path = checkpoints.latest()
    own = terms(config) | meaning_terms(config)
    if path is None:
        return Progress(run_id=config.name, base_digest=digest, terms=own), None
    progress, tensors = checkpoints.load(path)
    if (progress.run_id, progress.base_digest) != (config.name, digest):
        raise ResumeError(
            f"checkpoint {path} belongs to run {progress.run_id} on base "
            f"{progress.base_digest[:12]}, not to run {config.name} on base {digest[:12]}"
        )
    check_terms(RunConfig, f"checkpoint {path}", progress.terms, own)
    return replace(progress, terms=own), tensors
