"""Greedy episodes on official initial states: counted, never learned from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlarl.answers import actions_of
from vlarl.config import EvaluationConfig
from vlarl.intervals import wilson_interval
from vlarl.json_lines import JsonLines
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.record.best import EVALUATIONS
from vlarl_trainer.record.progress import Progress
from vlarl_trainer.rollouts.trajectory_check import TrajectoryError


@dataclass(frozen=True)
class EpisodeResult:
    """What counts of one greedy episode."""

    task: int
    init_state: int
    instruction: str
    success: bool
    actions: int
    """Policy actions executed; each step of a chunk is one."""
    seconds: float
    """Wall-clock seconds it took."""
    policy_version: int
    """Version that took every action."""
    digest: str
    """SHA-256 of the action tokens: equal where two evaluations acted alike."""


def score_episode(trajectory: rollout_pb2.Trajectory, version: int) -> EpisodeResult:
    """What counts of a finished episode.

    Raises:
        TrajectoryError: other weights than this version's acted, or not greedily.
    """
    spec = trajectory.spec
    versions = {step.action.policy_version for step in trajectory.steps}
    if versions - {version} or spec.temperature != 0:
        raise TrajectoryError(
            f"evaluation episode {spec.episode_id} ran versions {sorted(versions)} at "
            f"temperature {spec.temperature:g} instead of version {version} at 0"
        )
    tokens = [list(step.action.token_ids) for step in trajectory.steps]
    return EpisodeResult(
        task=spec.task.index,
        init_state=spec.init_state,
        instruction=trajectory.instruction,
        success=trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS,
        actions=actions_of(trajectory.steps),
        seconds=round(trajectory.seconds, 3),
        policy_version=version,
        digest=hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    )


@dataclass
class TaskScore:
    """One task's greedy episodes."""

    instruction: str = ""
    successes: int = 0
    episodes: int = 0
    """Those that were given up among them: the policy didn't succeed in them."""
    actions: int = 0
    """Policy actions of all episodes that ended, together."""
    missing: int = 0
    """Episodes that were given up."""

    @property
    def success_rate(self) -> float:
        """Share of all episodes; 0 where there are none."""
        return self.successes / max(1, self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the success rate, 95 %."""
        return wilson_interval(self.successes, self.episodes)

    @property
    def mean_actions(self) -> float:
        """Policy actions of an episode that ended."""
        return self.actions / max(1, self.episodes - self.missing)

    def to_json(self) -> dict[str, object]:
        """The score, with what follows from it."""
        return asdict(self) | {
            "success_rate": self.success_rate,
            "interval": self.interval,
            "mean_actions": self.mean_actions,
        }


@dataclass(frozen=True)
class Evaluation:
    """Success by task, of one policy version."""

    iteration: int
    """Iterations that the policy was trained for."""
    policy_version: int
    env_steps: int
    """Control steps that it was trained for."""
    tasks: dict[int, TaskScore]

    @property
    def missing(self) -> int:
        """Episodes that were given up; they count as failures, as the benchmark's evaluators count
        an episode that breaks.
        """
        return sum(score.missing for score in self.tasks.values())

    @property
    def total(self) -> TaskScore:
        """All tasks together."""
        total = TaskScore("all tasks")
        for score in self.tasks.values():
            total.successes += score.successes
            total.episodes += score.episodes
            total.actions += score.actions
            total.missing += score.missing
        return total

    def metrics(self) -> dict[str, float]:
        """Success in total and by task, by their names in docs/metrics.md."""
        name = "evaluation_success_rate"
        counted = {name: self.total.success_rate, "evaluation_missing_episodes": self.missing}
        return counted | {
            f"{name}/task_{task}": score.success_rate for task, score in self.tasks.items()
        }

    def to_json(self) -> dict[str, object]:
        """Everything, with intervals."""
        return asdict(self) | {
            "tasks": {task: score.to_json() for task, score in self.tasks.items()},
            "total": self.total.to_json(),
            "missing": self.missing,
        }


def count(
    results: Iterable[EpisodeResult],
    progress: Progress,
    given_up: Iterable[rollout_pb2.EpisodeSpec],
) -> Evaluation:
    """The score of the policy that a run had at `progress`: of the episodes that ended, and of
    those that were given up.
    """
    tasks: dict[int, TaskScore] = {}
    for result in results:
        score = tasks.setdefault(result.task, TaskScore())
        score.instruction = result.instruction
        score.episodes += 1
        score.successes += result.success
        score.actions += result.actions
    for spec in given_up:
        score = tasks.setdefault(spec.task.index, TaskScore())
        score.episodes += 1
        score.missing += 1
    return Evaluation(
        iteration=progress.iteration,
        policy_version=progress.version,
        env_steps=progress.env_steps,
        tasks=dict(sorted(tasks.items())),
    )


class EvaluationLog:
    """RUN/evaluations.jsonl: one line an evaluation."""

    def __init__(self, run_dir: Path, done: int | None = None) -> None:
        """Reads what is there.

        Args:
            run_dir: the run's folder.
            done: iterations that the run goes on from. Evaluations of later ones are forgotten:
                their checkpoints were removed, and other policies come in their place. None: all
                stay.
        """
        self._lines = JsonLines(
            run_dir / EVALUATIONS, lambda row: done is None or row["iteration"] <= done
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the file holds."""
        return self._lines.rows

    def due(self, progress: Progress, config: EvaluationConfig) -> bool:
        """Whether the policy at this point of the run is one to evaluate, and hasn't been."""
        if self.has(progress.iteration):
            return False
        if not progress.iteration:
            return config.at_start
        if config.every_iterations and progress.iteration % config.every_iterations == 0:
            return True
        before = max((row["env_steps"] for row in self._lines.rows), default=0)
        every = config.every_env_steps
        return bool(every) and progress.env_steps // every > before // every

    def has(self, iteration: int) -> bool:
        """Whether the policy after this many iterations has been evaluated."""
        return any(row["iteration"] == iteration for row in self._lines.rows)

    def write(self, evaluation: Evaluation, seconds: float) -> None:
        """Adds an evaluation.

        Args:
            evaluation: the score.
            seconds: wall-clock seconds of the evaluation.
        """
        times = {"seconds": seconds, "completed_timestamp_seconds": time.time()}
        self._lines.append(evaluation.to_json() | times)
