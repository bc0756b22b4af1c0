"""What was trained on when: probability and recent success of each task."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap

from vlarl_jobs.report.figures.panel import WIDE, Panel, draw, iteration_axis
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.records import Floats
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.theme import SHADES, SURFACE

_CELLS, _LEAST, _MOST, _GAPS = 1500, 24, 60, 30
_TALL, _MOST_NAMED = 4.6, 20


def curriculum_tasks(run: Run) -> list[int]:
    """Tasks that the curriculum chose among."""
    names = {name for one in run.iterations for name in one.metrics}
    found = (re.fullmatch(r"task_probability/task_(\d+)", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def curriculum_panels(groups: Sequence[Group]) -> list[Panel]:
    """Two pictures for each group that has more than one task."""
    panels = []
    for number, group in enumerate(groups):
        tasks = curriculum_tasks(group.first)
        if len(tasks) < 2:
            continue
        suffix = f": {group.label}" if len(groups) > 1 else ""
        for metric, title in (
            ("task_probability", "Probability of each task"),
            ("task_success", "Recent success of each task"),
        ):
            name = f"{metric.replace('_', '-')}-{number}"
            panels.append(_heatmap(name, title + suffix, group, metric, tasks))
    return panels


def task_table(group: Group, metric: str, tasks: Sequence[int]) -> Floats:
    """[tasks, iterations], mean over the group's runs, as long as the shortest of them."""
    length = min(len(run.iterations) for run in group.runs)
    return np.array(
        [
            np.mean([run.metric(f"{metric}/task_{task}")[:length] for run in group.runs], axis=0)
            for task in tasks
        ]
    )


def _heatmap(name: str, title: str, group: Group, metric: str, tasks: Sequence[int]) -> Panel:
    table = task_table(group, metric, tasks)
    # Every cell is a path of the picture; many tasks get fewer columns.
    columns = min(_MOST, max(_LEAST, _CELLS // len(tasks)))
    step = -(-table.shape[1] // columns)
    starts = np.arange(0, table.shape[1], step)
    shown = np.array([[np.nanmean(row[start : start + step]) for start in starts] for row in table])
    most = 1.0 if metric == "task_success" else max(float(np.nanmax(shown)), 2 / len(tasks))

    def paint(axes: Axes) -> None:
        edges = np.append(starts, table.shape[1]) + 0.5
        norm = BoundaryNorm(np.linspace(0, most, len(SHADES) + 1), len(SHADES))
        mesh = axes.pcolormesh(
            edges,
            np.arange(len(tasks) + 1) - 0.5,
            shown,
            cmap=ListedColormap(SHADES),
            norm=norm,
            edgecolors=SURFACE,
            linewidth=0.6 if max(shown.shape) < _GAPS else 0.2,
        )
        named = slice(None, None, -(-len(tasks) // _MOST_NAMED))
        axes.set_yticks(range(len(tasks))[named], [str(task) for task in tasks[named]])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        iteration_axis(axes)
        axes.set_ylabel("task")
        axes.grid(visible=False)
        figure = axes.figure
        ticks = np.linspace(0, most, 3)
        bar = figure.colorbar(mesh, ax=axes, ticks=ticks, aspect=28, pad=0.02)
        bar.ax.set_yticklabels([f"{tick:.0%}" for tick in ticks])
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)

    height = min(_TALL, 1.5 + 0.22 * len(tasks))
    return draw(name, title, paint, (WIDE[0], height))
