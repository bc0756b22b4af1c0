"""Whether the process reward model's rewards go with success, or are farmed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from vlarl.config import ProcessRewardConfig
from vlarl_jobs.report.figures.panel import (
    Panel,
    bound_line,
    draw,
    legend_below,
    share_axis,
    steps_axis,
)
from vlarl_jobs.report.figures.scalars import paint_scalar
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.theme import GREEN, ORANGE, PALE, SERIES


def reward_panels(groups: Sequence[Group]) -> list[Panel]:
    """Nothing where no run has dense rewards."""
    rewarded = [group for group in groups if any(run.has("dense_return") for run in group.runs)]
    if not rewarded:
        return []
    panels = [
        draw(
            f"dense-return-{number}",
            "Dense return" + (f": {group.label}" if len(groups) > 1 else ""),
            lambda axes, group=group: _by_outcome(axes, group),  # type: ignore[misc]
        )
        for number, group in enumerate(rewarded)
    ]
    # Nobody watches potentials, which can't be farmed.
    watched = [g for g in rewarded if any(run.has("dense_success_correlation") for run in g.runs)]
    if watched:
        panels += [
            draw("dense-success", "Does it go with success?", lambda axes: _success(axes, watched)),
            draw("dense-length", "Does it go with length?", lambda axes: _length(axes, watched)),
        ]
    return [
        *panels,
        draw("dense-share", "Share of all rewards", lambda axes: _share(axes, rewarded)),
    ]


def _by_outcome(axes: Axes, group: Group) -> None:
    for outcome, colour in (("success", GREEN), ("failure", ORANGE)):
        paint_scalar(axes, group, f"dense_return_{outcome}", colour, outcome)
    steps_axis(axes)
    axes.set_ylabel("an episode's sum")
    legend_below(axes)


def _success(axes: Axes, groups: Sequence[Group]) -> None:
    _correlation(axes, groups, "dense_success_correlation")
    sections = [run.config.reward for group in groups for run in group.runs]
    watched = [one for one in sections if isinstance(one, ProcessRewardConfig)]
    for name, bounds in (
        ("warns", {one.warn_below for one in watched}),
        ("stops", {one.stop_below for one in watched}),
    ):
        # Where the runs' bounds differ, none is everybody's.
        bound = bounds.pop() if len(bounds) == 1 else None
        if bound is not None:
            bound_line(axes, bound, f"{name} below")


def _length(axes: Axes, groups: Sequence[Group]) -> None:
    _correlation(axes, groups, "dense_length_correlation")


def _correlation(axes: Axes, groups: Sequence[Group], metric: str) -> None:
    for number, group in enumerate(groups):
        paint_scalar(axes, group, metric, SERIES[number % len(SERIES)])
    axes.axhline(0, color=PALE, linewidth=0.8)
    axes.set_ylim(-1.02, 1.02)
    axes.set_ylabel("correlation")
    steps_axis(axes)


def _share(axes: Axes, groups: Sequence[Group]) -> None:
    for number, group in enumerate(groups):
        paint_scalar(axes, group, "dense_share", SERIES[number % len(SERIES)])
    steps_axis(axes)
    share_axis(axes)
