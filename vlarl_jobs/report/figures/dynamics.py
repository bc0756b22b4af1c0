"""How learning went: the scalars that the paper shows, over experience."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from vlarl_jobs.report.figures.panel import Panel, bound_line, draw, share_axis, steps_axis
from vlarl_jobs.report.figures.scalars import paint_scalar
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.theme import PALE, SERIES


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
    Scalar("reference_kl", "KL(start || policy)", "nats an action"),
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
            paint_scalar(axes, group, scalar.metric, SERIES[number % len(SERIES)])
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


def _bound(axes: Axes, metric: str, groups: Sequence[Group]) -> None:
    """KL's bound, where all runs have the same."""
    bounds = {run.config.trainer.chosen.kl_stop for group in groups for run in group.runs}
    if metric != "largest_kl" or len(bounds) > 1:
        return
    (bound,) = bounds
    if 0 < bound < 4 * axes.get_ylim()[1]:
        bound_line(axes, bound, "an update ends here")


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
