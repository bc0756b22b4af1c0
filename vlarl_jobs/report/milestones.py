"""Where training came from and where it got to: a group's first and last evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.records import Evaluation, Score, pooled


@dataclass(frozen=True)
class Milestone:
    """Evaluations of a group's runs at the same point, or nearly so."""

    when: str
    """After how many iterations."""
    tasks: dict[int, Score]
    """Episodes of all runs together."""
    total: Score
    """All tasks together."""


def milestones(group: Group) -> list[Milestone]:
    """The first and the last, or the only one there is.

    Of several runs they are the first and the last after which all have been evaluated, so that a
    run which is still going on is compared with what the others were then. Where runs are evaluated
    after other iterations, they are each run's own first and last.
    """
    known = [run.evaluations for run in group.runs if run.evaluations]
    if not known:
        return []
    common = set.intersection(*({one.iteration for one in run} for run in known))
    if len(common) > 1:
        known = [[one for one in run if one.iteration in common] for run in known]
    ends = [0] if all(len(run) == 1 for run in known) else [0, -1]
    return [_together([run[end] for run in known]) for end in ends]


def _together(evaluations: Sequence[Evaluation]) -> Milestone:
    iterations = [one.iteration for one in evaluations]
    tasks = sorted({task for one in evaluations for task in one.tasks})
    scores = {
        task: pooled(one.tasks[task] for one in evaluations if task in one.tasks) for task in tasks
    }
    total = pooled(one.total for one in evaluations)
    return Milestone(after(min(iterations), max(iterations)), scores, total)


def after(least: int, most: int) -> str:
    """So many iterations, in words."""
    if not most:
        return "before training"
    if least != most:
        return f"after {least} to {most} iterations"
    return f"after {most} iteration{'s' if most > 1 else ''}"
