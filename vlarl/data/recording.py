"""Rollouts as a dataset: what a policy saw and did, and whether it reached its goal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlarl.config import EnvConfig
from vlarl.config.libero import MAIN_CAMERA
from vlarl.data.dataset import Capture, DatasetError, Frames, TaskSamples, write_task
from vlarl.rollout.v1 import rollout_pb2


class RolloutRecorder:
    """Writes trajectories that carry their frames, a part of a dataset at a time."""

    def __init__(self, directory: Path, env: EnvConfig) -> None:
        self._directory = directory
        self._env = env

    def write(self, part: str, trajectories: Sequence[rollout_pb2.Trajectory]) -> None:
        """Writes trajectories as a part of this name, one file a task; again, it replaces them.

        Of several cameras the main one's frames are written.

        Raises:
            DatasetError: the folder's frames were taken in another way, or an answer is for several
                control steps, of which a dataset has one a frame.
        """
        for trajectory in trajectories:
            if any(step.action.horizon > 1 for step in trajectory.steps):
                raise DatasetError(
                    f"{self._directory}: episode {trajectory.spec.episode_id} has answers of "
                    "several actions, and a dataset has one action a frame: don't record it"
                )
        tasks: dict[tuple[str, int], list[rollout_pb2.Trajectory]] = defaultdict(list)
        for trajectory in trajectories:
            task = trajectory.spec.task
            tasks[task.suite, task.index].append(trajectory)
        for (suite, index), members in tasks.items():
            write_task(
                self._directory, self._capture(members), _samples(suite, index, members), part
            )

    def _capture(self, members: Sequence[rollout_pb2.Trajectory]) -> Capture:
        """How their frames were taken, by one camera for all."""
        env = self._env
        shown = members[0].cameras or env.cameras or (MAIN_CAMERA,)
        return Capture(
            camera=shown[0],
            render_size=env.render_size,
            crop=env.crop,
            profile=env.profile,
            action_repeat=env.action_repeat,
        )


def _samples(suite: str, index: int, members: list[rollout_pb2.Trajectory]) -> TaskSamples:
    lengths = [len(trajectory.steps) for trajectory in members]
    steps = [step for trajectory in members for step in trajectory.steps]
    succeeded = [one.outcome == rollout_pb2.OUTCOME_SUCCESS for one in members]
    placements = [_placement(one.spec) for one in members]
    return TaskSamples(
        suite=suite,
        index=index,
        instruction=members[0].instruction,
        frames=Frames.of([step.image for step in steps]),
        actions=np.array([step.action.values for step in steps], dtype=np.float32),
        episodes=np.repeat(np.arange(len(members), dtype=np.int32), lengths),
        poses=np.zeros((len(steps), 0), dtype=np.float32),
        pose_names=(),
        placements=np.repeat(np.array(placements, dtype=np.int64), lengths),
        succeeded=np.repeat(succeeded, lengths),
    )


def _placement(spec: rollout_pb2.EpisodeSpec) -> int:
    if spec.WhichOneof("placement") == "init_state":
        return -1 - spec.init_state
    return spec.placement_seed
