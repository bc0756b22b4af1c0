"""A metric of a group's runs, over experience."""

from __future__ import annotations

from matplotlib.axes import Axes

from vlarl_jobs.report.curves import over_runs, smoothed, window_of
from vlarl_jobs.report.groups import Group


def paint_scalar(
    axes: Axes, group: Group, metric: str, colour: str, label: str | None = None
) -> None:
    """One run: its points, and a smoothed curve. Several: each faint, their mean and range."""
    runs = [run for run in group.runs if run.has(metric)]
    curves = [
        (run.env_steps, smoothed(run.metric(metric), window_of(run.metric("episodes"))))
        for run in runs
    ]
    if len(curves) == 1:
        ((x, y),) = curves
        axes.plot(x, runs[0].metric(metric), color=colour, alpha=0.35, linewidth=0.9)
        marker = "o" if len(x) < 3 else ""
        axes.plot(x, y, color=colour, marker=marker, markersize=4, label=label)
        return
    for x, y in curves:
        axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
    if band := over_runs(curves):
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(band.x, band.middle, color=colour, label=label)
