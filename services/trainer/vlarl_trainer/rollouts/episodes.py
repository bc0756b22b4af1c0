"""Episodes that have nothing to do with each other: each placement once, all are learned from."""

from __future__ import annotations

import numpy as np

from vlarl.learning.seeds import Stream, generator_for
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.plan import RolloutPlan


class EpisodePlan(RolloutPlan):
    """Orders `episodes_per_iteration` episodes, each on a placement of its own."""

    def first(self, iteration: int) -> list[rollout_pb2.EpisodeSpec]:
        """Ids are RUN:ITERATION:INDEX."""
        tasks = self._first_tasks(iteration, self._config.trainer.episodes_per_iteration)
        specs = []
        for index, task in enumerate(tasks):
            drawn = generator_for(self._config.seed, Stream.EPISODE, iteration, index)
            placement, sampling = drawn.integers(2**63, size=2, dtype=np.uint64).tolist()
            place = f"{iteration:05d}:{index:04d}"
            specs.append(self._order(place, iteration, task, placement, sampling))
        return specs
