"""The episodes that a run orders.

Placement and sampling seed of an episode are a function of the run's seed and the episode's place
in the run; its task is one of that and of the curriculum's memory when it is ordered, which the
checkpoint keeps. A trainer that comes back after a crash orders under the same ids, and the queue
knows by them what it has already. With `trainer.staleness` 1 a batch is ordered before the last one
is counted: ordered again later it may name other tasks, and the queue keeps its first order.
"""

from __future__ import annotations

import numpy as np

from vlarl.config import RunConfig
from vlarl.learning.seeds import Stream, generator_for
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.curriculum import Curriculum


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
