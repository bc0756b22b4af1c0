"""How learning went: the scalars that the paper shows, over experience."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from vlarl.report.curves import over_runs, smoothed, window_of
from vlarl.report.figures.panel import Panel, draw, share_axis, steps_axis
from vlarl.report.groups import Group
from vlarl.report.run_folder import Run
from vlarl.report.theme import GREY, PALE, SERIES


@dataclass(frozen=True)
class Scalar:
    """One metric's picture."""

    metric: str
    title: str
    unit: str
    share: bool = False
    """Whether its axis goes from 0 to 100 %."""
    zero: bool = True
    """Whether its axis begins at 0."""


SCALARS = (
    Scalar("episode_return", "Return", "sum of rewards"),
    Scalar("episode_actions", "Episode length", "policy actions"),
    Scalar("entropy", "Rollout entropy", "nats a token", zero=False),
    Scalar("approximate_kl", "KL(old || new)", "nats an action"),
    Scalar("largest_kl", "KL of the worst mini-batch", "nats an action"),
    Scalar("clip_fraction", "Clip fraction", "share of ratios", share=True),
    Scalar("grad_norm", "Gradient norm", "before clipping"),
    Scalar("value_loss", "Value loss", "half squared error"),
    Scalar("explained_variance", "Explained variance", "share of returns' variance"),
)


def dynamics_panels(groups: Sequence[Group]) -> list[Panel]:
    """A picture for each scalar that any run has."""
    runs = [run for group in groups for run in group.runs]
    known = [scalar for scalar in SCALARS if any(run.has(scalar.metric) for run in runs)]
    return [_panel(scalar, groups) for scalar in known]


def _panel(scalar: Scalar, groups: Sequence[Group]) -> Panel:
    def paint(axes: Axes) -> None:
        for number, group in enumerate(groups):
            _paint(axes, group, scalar.metric, SERIES[number % len(SERIES)])
        steps_axis(axes)
        axes.set_ylabel(scalar.unit)
        _bound(axes, scalar.metric, groups)
        if scalar.metric == "explained_variance":
            axes.set_ylim(max(-1.0, min(-0.05, axes.get_ylim()[0])), 1.02)
            axes.axhline(0, color=PALE, linewidth=0.8)
        elif scalar.share:
            share_axis(axes)
        elif scalar.zero:
            _from_zero(axes)
        else:
            _widen(axes)

    return draw(scalar.metric.replace("_", "-"), scalar.title, paint)


def _paint(axes: Axes, group: Group, metric: str, colour: str) -> None:
    """One run: its points, and a smoothed curve. Several: each faint, their mean and range."""
    curves = [(run.env_steps, smoothed(run.metric(metric), _window(run))) for run in group.runs]
    if len(curves) == 1:
        ((x, y),) = curves
        axes.plot(x, group.first.metric(metric), color=colour, alpha=0.35, linewidth=0.9)
        axes.plot(x, y, color=colour, marker="o" if len(x) < 3 else "", markersize=4)
        return
    for x, y in curves:
        axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
    if band := over_runs(curves):
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(band.x, band.middle, color=colour)


def _window(run: Run) -> int:
    return window_of(run.metric("episodes"))


def _bound(axes: Axes, metric: str, groups: Sequence[Group]) -> None:
    """KL's bound, where all runs have the same."""
    bounds = {run.config.trainer.ppo.kl_stop for group in groups for run in group.runs}
    if metric != "largest_kl" or len(bounds) > 1:
        return
    (bound,) = bounds
    if 0 < bound < 4 * axes.get_ylim()[1]:
        axes.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "an update ends here",
            (1, bound),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=7.5,
            color=GREY,
        )


def _from_zero(axes: Axes) -> None:
    """An axis that begins at 0, unless there is less than nothing."""
    low, high = axes.dataLim.intervaly
    if not math.isfinite(high - low):  # no point has a value
        low, high = 0.0, 1.0
    axes.set_ylim(min(0.0, 1.05 * low), 1.05 * high if high > 0 else 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _widen(axes: Axes) -> None:
    """An axis that doesn't begin at 0 must not make a mountain of noise."""
    low, high = axes.get_ylim()
    least = 0.05
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)
