"""Greedy episodes on official initial states: counted, never learned from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from services.trainer.batch import TrajectoryError
from vlarl.rollout.v1 import rollout_pb2


def wilson_interval(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate, 95 % by default (Wilson 1927)."""
    if not episodes:
        return 0.0, 1.0
    rate = successes / episodes
    center = rate + z * z / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


@dataclass
class TaskScore:
    """One task's greedy episodes."""

    instruction: str = ""
    successes: int = 0
    episodes: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Success by task, of one policy version."""

    iteration: int
    policy_version: int
    tasks: dict[int, TaskScore]
    missing: int
    """Episodes that were given up; they count neither way."""

    @property
    def total(self) -> TaskScore:
        """All tasks together."""
        scores = self.tasks.values()
        successes, episodes = (sum(s.successes for s in scores), sum(s.episodes for s in scores))
        return TaskScore("all tasks", successes, episodes)

    @property
    def success_rate(self) -> float:
        """Over all episodes."""
        return self.total.successes / max(1, self.total.episodes)


def count_successes(
    trajectories: Iterable[rollout_pb2.Trajectory], iteration: int, version: int, missing: int
) -> Evaluation:
    """Counts finished episodes.

    Raises:
        TrajectoryError: other weights than this version's acted, or not greedily.
    """
    tasks: dict[int, TaskScore] = {}
    for trajectory in trajectories:
        spec = trajectory.spec
        versions = {step.action.policy_version for step in trajectory.steps}
        if versions - {version} or spec.temperature != 0:
            raise TrajectoryError(
                f"evaluation episode {spec.episode_id} ran versions {sorted(versions)} at "
                f"temperature {spec.temperature:g} instead of version {version} at 0"
            )
        score = tasks.setdefault(spec.task.index, TaskScore(trajectory.instruction))
        score.episodes += 1
        score.successes += trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
    return Evaluation(iteration, version, dict(sorted(tasks.items())), missing)


class EvaluationLog:
    """RUN/evaluations.jsonl: one line an evaluation."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "evaluations.jsonl"

    def has(self, iteration: int) -> bool:
        """Whether the policy after this many iterations has been evaluated."""
        if not self._path.exists():
            return False
        # A crash may have cut the last line short.
        lines = [line for line in self._path.read_text().splitlines() if line.endswith("}")]
        return any(json.loads(line)["iteration"] == iteration for line in lines)

    def write(self, evaluation: Evaluation) -> None:
        """Adds an evaluation."""
        tasks: Mapping[int, object] = {
            task: asdict(score) | {"interval": wilson_interval(score.successes, score.episodes)}
            for task, score in evaluation.tasks.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(evaluation) | {"tasks": tasks}) + "\n")
