"""The episodes that a run orders.

Placement and sampling seed of an episode are a function of the run's seed and the episode's place
in the run; its task is one of that and of the curriculum's memory when it is ordered, which the
checkpoint keeps. A trainer that comes back after a crash orders under the same ids, and the queue
knows by them what it has already. With `trainer.staleness` 1 a batch is ordered before the last one
is counted: ordered again later it may name other tasks, and the queue keeps its first order.
"""

from __future__ import annotations

import contextlib

import numpy as np

from services.trainer.curriculum import Curriculum
from services.trainer.seeds import Stream, generator_for
from vlarl.config import ConfigError, RunConfig
from vlarl.libero import base_suite
from vlarl.openvla.config import OpenVLAConfig
from vlarl.rollout.v1 import rollout_pb2

_ARM = 7
"""Numbers of an action in the simulator."""


def training_episodes(
    config: RunConfig, iteration: int, curriculum: Curriculum, unnorm_key: str
) -> list[rollout_pb2.EpisodeSpec]:
    """One iteration's episodes, on placements of our own: the official initial states are kept
    for evaluation.
    """
    count = config.trainer.episodes_per_iteration
    tasks = curriculum.draw(count, generator_for(config.seed, Stream.TASKS, iteration))
    specs = []
    for index, task in enumerate(tasks):
        drawn = generator_for(config.seed, Stream.EPISODE, iteration, index)
        placement, sampling = drawn.integers(2**63, size=2, dtype=np.uint64).tolist()
        specs.append(
            rollout_pb2.EpisodeSpec(
                episode_id=f"{config.name}:{iteration:05d}:{index:04d}",
                run_id=config.name,
                purpose=rollout_pb2.PURPOSE_TRAINING,
                iteration=iteration,
                task=rollout_pb2.Task(suite=config.tasks.suite, index=task),
                placement_seed=placement,
                max_actions=config.tasks.max_actions,
                temperature=config.trainer.temperature,
                sampling_seed=sampling,
                unnorm_key=unnorm_key,
                record_frames=True,
            )
        )
    return specs


def evaluation_episodes(
    config: RunConfig, iteration: int, unnorm_key: str
) -> list[rollout_pb2.EpisodeSpec]:
    """Greedy episodes of every task from its first official initial states."""
    return [
        rollout_pb2.EpisodeSpec(
            episode_id=f"{config.name}:evaluation-{iteration:05d}:{task:03d}-{init_state:02d}",
            run_id=config.name,
            purpose=rollout_pb2.PURPOSE_EVALUATION,
            iteration=iteration,
            task=rollout_pb2.Task(suite=config.tasks.suite, index=task),
            init_state=init_state,
            max_actions=config.tasks.max_actions,
            temperature=0.0,
            unnorm_key=unnorm_key,
            unscored=True,
        )
        for task in config.tasks.indices
        for init_state in range(config.evaluation.episodes_per_task)
    ]


def chosen_unnorm_key(config: RunConfig, model: OpenVLAConfig) -> str:
    """The statistics that un-normalise actions: those named, the suite's, or the only ones.

    Raises:
        ConfigError: there are none of this name, or several, and none is the suite's; or they
            are of another arm's actions.
    """
    if model.action_dim != _ARM:
        raise ConfigError(
            f"{model.name}: its actions have {model.action_dim} dimensions, and the simulated arm "
            f"takes {_ARM}"
        )
    if config.unnorm_key:
        return model.unnorm_key(config.unnorm_key)
    for name in (config.tasks.suite, base_suite(config.tasks.suite), ""):
        with contextlib.suppress(ValueError):
            return model.unnorm_key(name)
    raise ConfigError(
        f"set unnorm_key: {model.statistics_file} of the checkpoint has statistics for "
        f"{', '.join(sorted(model.norm_stats))}, none for {config.tasks.suite} (those of a "
        "fine-tuning run lie in its dataset_statistics.json)"
    )
