"""The episodes that a run orders, and those of them that it learns from.

Placement and sampling seed of an episode are a function of the run's seed and the episode's place
in the run. Its task is one of that and of the curriculum's memory when it was first ordered; the
checkpoint keeps that memory, and the tasks of batches that `trainer.staleness` orders ahead. So a
trainer that comes back after a crash orders the same episodes under the same ids, and the queue
knows by them what it has already.

Nothing is acknowledged before the checkpoint that learned from its iteration. So what is learned
from, and what is ordered anew, is a function of the checkpoint and of the trajectories in the
queue, whenever a trainer was killed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlarl.config import RunConfig
from vlarl.learning.seeds import Stream, generator_for
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.curriculum import Curriculum
from vlarl_trainer.rollouts.orders import Ended


@dataclass(frozen=True)
class Review:
    """What of an iteration's episodes is learned from."""

    kept: Sequence[str]
    """Ids of the episodes to learn from, in the order in which they are learned from."""
    metrics: dict[str, float] = field(default_factory=dict)
    """By their names in record/metrics.py."""


class RolloutPlan(ABC):
    """Which episodes each iteration orders, and which of them are learned from."""

    def __init__(self, config: RunConfig, curriculum: Curriculum, unnorm_key: str) -> None:
        """curriculum: draws tasks; it changes between iterations only."""
        self._config = config
        self._curriculum = curriculum
        self._unnorm_key = unnorm_key
        self._tasks: dict[int, list[int]] = {}

    @abstractmethod
    def first(self, iteration: int) -> list[rollout_pb2.EpisodeSpec]:
        """The episodes that an iteration begins with. They may be ordered ahead of their turn."""

    def further(self, iteration: int, ended: Ended) -> list[rollout_pb2.EpisodeSpec]:  # noqa: ARG002
        """All episodes that the iteration takes beside the first: none by default, and the batch
        goes on without what was given up.

        Args:
            iteration: whose episodes these are.
            ended: those that have ended so far; of a group all, or none.
        """
        return []

    def review(self, iteration: int, ended: Ended) -> Review:  # noqa: ARG002
        """What is learned from, once all episodes have ended, the further ones too: by default all
        that came back.

        Raises:
            RolloutError: nothing can be learned from.
        """
        return Review([trajectory.spec.episode_id for trajectory in ended.trajectories])

    def tasks_ahead(self, iteration: int) -> dict[str, list[int]]:
        """What a checkpoint keeps: by iteration, the tasks that were drawn for this one and those
        after it.
        """
        return {str(number): drawn for number, drawn in self._tasks.items() if number >= iteration}

    def restore(self, tasks: Mapping[str, Sequence[int]]) -> None:
        """Takes over what a checkpoint kept."""
        self._tasks = {int(number): list(drawn) for number, drawn in tasks.items()}

    def _first_tasks(self, iteration: int, count: int) -> list[int]:
        """The tasks drawn when the iteration was first ordered, unless the run now has others."""
        drawn = self._tasks.get(iteration, [])
        if len(drawn) != count or not set(drawn) <= set(self._config.tasks.indices):
            generator = generator_for(self._config.seed, Stream.TASKS, iteration)
            drawn = self._curriculum.draw(count, generator)
        self._tasks[iteration] = drawn
        return drawn

    def _order(
        self, place: str, iteration: int, task: int, placement: int, sampling: int, group: str = ""
    ) -> rollout_pb2.EpisodeSpec:
        """One episode, on a placement of our own: the official initial states are kept for
        evaluation.

        Args:
            place: what follows the run in its id.
            iteration: that learns from it.
            task: index within the suite.
            placement: seed of where objects start.
            sampling: seed of its actions.
            group: what follows the run in its group's id; empty: it has none.
        """
        config = self._config
        return rollout_pb2.EpisodeSpec(
            episode_id=f"{config.name}:{place}",
            run_id=config.name,
            purpose=rollout_pb2.PURPOSE_TRAINING,
            iteration=iteration,
            task=rollout_pb2.Task(suite=config.tasks.suite, index=task),
            placement_seed=placement,
            max_actions=config.tasks.max_actions,
            temperature=config.trainer.temperature,
            sampling_seed=sampling,
            unnorm_key=self._unnorm_key,
            record_frames=True,
            group_id=group and f"{config.name}:{group}",
        )


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
