"""The section on groups of episodes, of runs whose algorithm compares within them."""

from __future__ import annotations

from collections.abc import Sequence

from vlarl_jobs.report.figures.episode_groups import (
    OUTCOMES,
    episode_group_panels,
    has_groups,
    ordered_groups,
)
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.sections import Cell, Section, Table, number


def episode_groups(groups: Sequence[Group]) -> Section | None:
    """None where no run has any."""
    runs = [run for group in groups for run in group.runs if has_groups(run)]
    if not runs:
        return None
    head = ["run", *OUTCOMES.values(), "orders of a group", "episodes spent for one learned from"]
    return Section(
        "groups",
        "Groups of episodes",
        "Episodes of a group share task, placement and policy version, and are compared with each "
        "other. A group in which nearly all or nearly none succeed teaches little: it is dropped "
        "and ordered anew, on another placement. Fewer than two episodes came back of one that is "
        "void. Many orders of a group and many episodes for one learned from mean that tasks are "
        "too easy, or still too hard.",
        panels=episode_group_panels(groups),
        columns=2,
        tables=[Table(head, [_group_row(run) for run in runs])],
    )


def _group_row(run: Run) -> list[Cell]:
    ordered = ordered_groups(run)
    counts = [number(ordered.outcomes[metric], ".0f") for metric in OUTCOMES]
    return [run.name, *counts, number(ordered.attempts, ".2f"), number(ordered.per_learned, ".2f")]
