"""RUN/actions: what the first policy did, and what the latest does.

    actions/iteration-00000.npz    values [N, action_dim], the actions as the robot got them; of a
                                   chunk those that were executed
                                   episodes [N], the episode of each, counted from 0

They show how far training moved the policy through the space of actions. Of the iterations between
the first and the latest nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlarl.answers import actions_of, executed_actions
from vlarl.rollout.v1 import rollout_pb2


class ActionLog:
    """Keeps the actions of two iterations."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "actions"

    def write(self, iteration: int, trajectories: Sequence[rollout_pb2.Trajectory]) -> None:
        """Keeps the actions of all episodes of an iteration, those of dropped groups too. It comes
        before the checkpoint, so that an iteration which a crash has done again leaves its latest.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / f"iteration-{iteration:05d}.npz"
        partial = final.with_suffix(".partial")
        lengths = [actions_of(trajectory.steps) for trajectory in trajectories]
        values = [
            action
            for trajectory in trajectories
            for step in trajectory.steps
            for action in _executed(step)
        ]
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                values=np.array(values, dtype=np.float32),
                episodes=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            )
        partial.replace(final)
        between = sorted(self._folder.glob("iteration-*.npz"))[1:]
        for old in between:
            if old != final:
                old.unlink()


def _executed(step: rollout_pb2.Step) -> NDArray[np.float32]:
    """[executed, action_dim]."""
    horizon = max(1, step.action.horizon)
    values = np.array(step.action.values, dtype=np.float32).reshape(horizon, -1)
    return values[: executed_actions(step)]
