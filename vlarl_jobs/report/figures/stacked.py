"""Bars of what each iteration consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from vlarl_jobs.report.figures.panel import iteration_axis, legend_below
from vlarl_jobs.report.records import Floats

_BARS = 60
_FEW = 4


def paint_stacked(
    axes: Axes, runs: Sequence[Mapping[str, Floats]], colours: Mapping[str, str]
) -> None:
    """Bars by iteration, of the runs' mean; of long runs a bar is the mean of several iterations.

    Args:
        axes: are filled.
        runs: each one's parts [iterations], by name.
        colours: of the parts, from the bottom.
    """
    length = min(len(part) for run in runs for part in run.values())
    step = -(-length // _BARS)
    starts = np.arange(0, length, step)
    below = np.zeros(len(starts))
    for name, colour in colours.items():
        mean = np.mean([run[name][:length] for run in runs], axis=0)
        bars = np.add.reduceat(mean, starts) / np.diff(np.append(starts, length))
        centres = starts + (step + 1) / 2
        axes.bar(centres, bars, 0.82 * step, bottom=below, color=colour, label=name)
        below += bars
    iteration_axis(axes)
    axes.set_xlim(0.4, length + 0.6)
    legend_below(axes, columns=2 if len(colours) <= _FEW else 3)
