"""What a run's evaluations say: which checkpoint is the best, whether the policy is good enough,
and whether the run should go back.

All of it is a function of RUN/evaluations.jsonl, of the checkpoints that are there, and of where
the run stands. So a trainer that is killed and goes on decides the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlarl.intervals import wilson_interval
from vlarl.json_lines import read_lines
from vlarl.learning.checkpoints import ResumeError
from vlarl_trainer.record.progress import Progress, Rollback, run_checkpoints

Row = Mapping[str, Any]
"""A line of evaluations.jsonl."""

EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class Scored:
    """A policy's greedy episodes, all tasks together."""

    iteration: int
    """Iterations that it was trained for."""
    version: int
    successes: int
    episodes: int

    @classmethod
    def of(cls, row: Row) -> Scored:
        """From a line of evaluations.jsonl."""
        tasks = row["tasks"].values()
        return cls(
            iteration=row["iteration"],
            version=row["policy_version"],
            successes=sum(task["successes"] for task in tasks),
            episodes=sum(task["episodes"] for task in tasks),
        )

    @property
    def rate(self) -> float:
        """Share that succeeded; 0 where there are no episodes."""
        return self.successes / max(1, self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rate, Wilson's, 95 %."""
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} ({low:.1%} to {high:.1%}) after {self.iteration} iterations"


def comparable(rows: Sequence[Row], iteration: int | None = None) -> list[Scored]:
    """The evaluations of the same episodes as the latest: the same tasks, as many of each.

    Args:
        rows: in the order of training.
        iteration: later ones are passed over; None: none are.
    """
    known = [row for row in rows if iteration is None or row["iteration"] <= iteration]
    return [Scored.of(row) for row in known if _episodes(row) == _episodes(known[-1])]


def _episodes(row: Row) -> dict[str, int]:
    return {task: score["episodes"] for task, score in row["tasks"].items()}


def best_of(evaluations: Sequence[Scored]) -> Scored | None:
    """The one with the most successes; of equal ones the latest, which has learned most."""
    return max(evaluations, key=lambda one: (one.successes, one.iteration), default=None)


def kept_best(
    rows: Sequence[Row], progress: Progress, there: Callable[[int], bool]
) -> Scored | None:
    """The best up to where a run stands, of those that it can go back to.

    Args:
        rows: of evaluations.jsonl.
        progress: where the run stands.
        there: whether there is a checkpoint after so many iterations.
    """
    # Where a run went back, the checkpoint isn't of the policy that was evaluated any more.
    replaced = {rollback["iteration"] for rollback in progress.rollbacks}
    return best_of(
        [
            one
            for one in comparable(rows, progress.iteration)
            if one.iteration not in replaced and there(one.iteration)
        ]
    )


def reached(rows: Sequence[Row], progress: Progress, share: float | None) -> Scored | None:
    """The evaluation of the policy as it is, if that success is enough; None: it isn't, or `share`
    is none.
    """
    if share is None:
        return None
    own = [Scored.of(row) for row in rows if row["iteration"] == progress.iteration]
    return next((one for one in own if one.rate >= share), None)


def fallen(rows: Sequence[Row], progress: Progress, best: Scored, times: int) -> bool:
    """Whether the latest evaluations since the last return, so many in a row and the last of them
    of the policy as it is, all lie below the best by more than both intervals.
    """
    since = progress.rollbacks[-1]["iteration"] if progress.rollbacks else -1
    latest = [one for one in comparable(rows, progress.iteration) if one.iteration > since]
    if len(latest) < times or latest[-1].iteration != progress.iteration:
        return False
    return all(one.interval[1] < best.interval[0] for one in latest[-times:])


def rollback_to(best: Scored, progress: Progress, rate: float) -> Rollback:
    """The return to the best; rate: what it multiplies the learning rate by."""
    return Rollback(
        iteration=progress.iteration,
        from_version=progress.version,
        to_iteration=best.iteration,
        to_version=best.version,
        version=progress.version + 1,
        rate_scale=progress.rate_scale * rate,
    )


def best_checkpoint(run_dir: Path) -> Path:
    """The checkpoint of the best policy by a run's own evaluations. Nothing is written.

    Raises:
        ResumeError: there is no evaluation, or that checkpoint isn't there any more.
        DamagedFileError: evaluations.jsonl can't be read.
    """
    best = best_of(comparable(read_lines(run_dir / EVALUATIONS)))
    if best is None:
        raise ResumeError(
            f"run {run_dir} has no evaluation yet, by which a checkpoint would be the best; leave "
            "--best out for the newest"
        )
    checkpoints = run_checkpoints(run_dir)
    path = checkpoints.path(best.iteration)
    if not path.exists() or checkpoints.state(path).version != best.version:
        raise ResumeError(
            f"the best policy of run {run_dir}, {best}, is not there any more ({path}); leave "
            "--best out for the newest, or name another one of its checkpoints with --run"
        )
    return path
