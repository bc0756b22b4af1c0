"""What became of the groups of episodes that GRPO and RLOO compare within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from vlarl_jobs.report.figures.panel import WIDE, Panel, draw, steps_axis
from vlarl_jobs.report.figures.scalars import paint_scalar
from vlarl_jobs.report.figures.stacked import paint_stacked
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.records import Floats
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.theme import BLUE, GREY, ORANGE, SERIES, SKY

OUTCOMES = {
    "groups_kept": "kept",
    "groups_dropped_success": "too many successes",
    "groups_dropped_failure": "too few successes",
    "groups_void": "void",
}
"""What may become of a group: its metric, and its name on the page."""
_COLOURS = dict(zip(OUTCOMES.values(), (BLUE, SKY, ORANGE, GREY), strict=True))
_SCALARS = {
    "group_attempts": ("Orders of a group", "mean of the batch"),
    "episodes_per_learned": ("Episodes spent for one learned from", "episodes"),
    "group_deviation": ("Deviation of returns in a group", "mean of those kept"),
}


@dataclass(frozen=True)
class OrderedGroups:
    """What became of a run's groups, counted; NaN where something wasn't recorded."""

    outcomes: dict[str, float]
    """Groups, by `OUTCOMES`' metrics."""
    attempts: float
    """Mean orders of a group."""
    per_learned: float
    """Mean episodes spent for one that was learned from."""


def has_groups(run: Run) -> bool:
    """Whether the run has ordered groups."""
    return any(run.has(metric) for metric in OUTCOMES)


def ordered_groups(run: Run) -> OrderedGroups:
    """Adds a run's iterations up."""
    return OrderedGroups(
        outcomes={metric: _total(run, metric) for metric in OUTCOMES},
        attempts=_mean(run.metric("group_attempts")),
        per_learned=_per_learned(run),
    )


def _total(run: Run, metric: str) -> float:
    return float(np.nansum(run.metric(metric))) if run.has(metric) else np.nan


def _mean(values: Floats) -> float:
    """Of those that are known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _per_learned(run: Run) -> float:
    """Episodes of all iterations by those learned from; some iterations learned from none."""
    ordering = np.isfinite(run.metric("groups_kept"))
    episodes, each = run.metric("episodes"), run.metric("episodes_per_learned")
    learned = float(np.nansum(episodes / np.where(each > 0, each, np.nan)))
    return float(episodes[ordering].sum()) / learned if learned else np.nan


def episode_group_panels(groups: Sequence[Group]) -> list[Panel]:
    """Nothing where no run has groups of episodes."""
    ordering = [group for group in groups if any(map(has_groups, group.runs))]
    panels = [
        draw(
            f"episode-groups-{number}",
            "Groups by what became of them" + (f": {group.label}" if len(groups) > 1 else ""),
            lambda axes, group=group: _outcomes(axes, group),  # type: ignore[misc]
            WIDE,
        )
        for number, group in enumerate(ordering)
    ]
    return panels + [
        draw(
            metric.replace("_", "-"),
            title,
            lambda axes, metric=metric, unit=unit: _scalar(axes, groups, metric, unit),  # type: ignore[misc]
            WIDE,
        )
        for metric, (title, unit) in _SCALARS.items()
        if any(run.has(metric) for group in groups for run in group.runs)
    ]


def _outcomes(axes: Axes, group: Group) -> None:
    parts = [
        {name: np.nan_to_num(run.metric(metric)) for metric, name in OUTCOMES.items()}
        for run in group.runs
        if has_groups(run)
    ]
    paint_stacked(axes, parts, _COLOURS)
    axes.set_ylabel("groups of an iteration")


def _scalar(axes: Axes, groups: Sequence[Group], metric: str, unit: str) -> None:
    for number, group in enumerate(groups):
        if any(run.has(metric) for run in group.runs):
            paint_scalar(axes, group, metric, SERIES[number % len(SERIES)])
    steps_axis(axes)
    high = axes.dataLim.ymax
    axes.set_ylim(0, 1.1 * high if 0 < high < np.inf else 1.0)
    axes.set_ylabel(unit)
