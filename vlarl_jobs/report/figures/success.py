"""Success against experience, and against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from vlarl_jobs.report.curves import Band, over_runs, paired, smoothed_success, window_of
from vlarl_jobs.report.figures.panel import WIDE, Panel, draw, legend_below, share_axis, steps_axis
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.records import Evaluation, Floats
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.theme import ORANGE, SERIES, SURFACE

Place = Callable[[Run], Floats]
"""Where a run's iterations lie on the horizontal axis."""
PlaceOfEvaluation = Callable[[Run, Evaluation], float]


def success_panels(groups: Sequence[Group]) -> list[Panel]:
    """Success over control steps and over hours of work."""

    def over_steps(axes: Axes) -> None:
        _paint(axes, groups, lambda run: run.env_steps, lambda _, one: float(one.env_steps))
        steps_axis(axes)

    def over_time(axes: Axes) -> None:
        longest = max(run.worked_hours for group in groups for run in group.runs)
        unit, scale = ("hours", 1.0) if longest >= 2 else ("minutes", 60.0)
        _paint(
            axes,
            groups,
            lambda run: run.hours * scale,
            lambda run, one: run.evaluation_hours(one) * scale,
        )
        axes.set_xlabel(f"{unit} of work")
        axes.set_xlim(left=0)

    return [
        draw("success-steps", "Success by experience", over_steps, WIDE),
        draw("success-time", "Success by wall time", over_time, WIDE),
    ]


def training_success(run: Run, place: Floats) -> Band:
    """Of the episodes that a run learned from, smoothed, with Wilson intervals."""
    episodes = run.metric("episodes")
    return smoothed_success(place, run.metric("success_rate"), episodes, window_of(episodes))


def evaluated_success(run: Run, place: PlaceOfEvaluation) -> Band:
    """Of a run's greedy episodes, with Wilson intervals."""
    known = [one for one in run.evaluations if one.total.episodes]
    rows = [(place(run, one), one.total.rate, *one.total.interval) for one in known]
    return Band(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def _paint(
    axes: Axes, groups: Sequence[Group], place: Place, place_evaluation: PlaceOfEvaluation
) -> None:
    alone = len(groups) == 1
    for number, group in enumerate(groups):
        colour = SERIES[number % len(SERIES)]
        trained = [training_success(run, place(run)) for run in group.runs]
        evaluated = [evaluated_success(run, place_evaluation) for run in group.runs]
        _training(axes, trained, colour, "training episodes, sampled" if alone else group.label)
        if alone:
            _greedy(axes, evaluated, ORANGE, "greedy evaluations")
        else:
            _greedy(axes, evaluated, colour, None)
    share_axis(axes)
    axes.set_ylabel("success")
    legend_below(axes, columns=2 if len(groups) < 4 else 1)


def _training(axes: Axes, trained: Sequence[Band], colour: str, label: str) -> None:
    """One run with Wilson's intervals; several, faint, with their mean and range."""
    band: Band | None = trained[0]
    if len(trained) > 1:
        for one in trained:
            axes.plot(one.x, one.middle, color=colour, alpha=0.3, linewidth=0.8)
        band = over_runs([(one.x, one.middle) for one in trained])
    if band is not None:
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(band.x, band.middle, color=colour, label=label)


def _greedy(axes: Axes, evaluated: Sequence[Band], colour: str, label: str | None) -> None:
    """Dots with intervals: Wilson's of one run, from the lowest to the highest of several."""
    shown = evaluated[0] if len(evaluated) == 1 else paired([(o.x, o.middle) for o in evaluated])
    if not len(shown.x):
        return
    # Rounding may leave a bound on the wrong side of its rate by a hair.
    below = np.maximum(shown.middle - shown.low, 0)
    above = np.maximum(shown.high - shown.middle, 0)
    axes.errorbar(
        shown.x,
        shown.middle,
        yerr=[below, above],
        color=colour,
        label=label,
        marker="o",
        markersize=6,
        markeredgecolor=SURFACE,
        markeredgewidth=1,
        linestyle=(0, (1, 2)),
        linewidth=1,
        elinewidth=1.3,
        capsize=0,
        clip_on=False,
        zorder=3,
    )
