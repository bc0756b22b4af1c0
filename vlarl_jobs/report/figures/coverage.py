"""Where in the space of actions a policy moves, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vlarl.config.libero import ACTION_DIM, ACTION_DIMENSIONS
from vlarl_jobs.report.figures.panel import SMALL, Panel, draw
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.records import Floats
from vlarl_jobs.report.theme import GREY, ORANGE

_MOST_BINS = 40
_DOTS = 500


@dataclass(frozen=True)
class Coverage:
    """The first and the latest actions of a group's runs, all runs together."""

    first: Floats
    """[N, action_dim]."""
    latest: Floats
    """[M, action_dim]."""
    iterations: tuple[int, int]
    """Counted from 1."""


def coverage_of(group: Group) -> Coverage | None:
    """None: the runs have no actions of two iterations."""
    pairs = [run.actions for run in group.runs if len(run.actions) >= 2]
    if not pairs:
        return None
    return Coverage(
        first=np.concatenate([pair[0].values for pair in pairs]),
        latest=np.concatenate([pair[-1].values for pair in pairs]),
        iterations=(
            pairs[0][0].iteration + 1,
            max(pair[-1].iteration for pair in pairs) + 1,
        ),
    )


def principal_plane(first: Floats, latest: Floats) -> tuple[Floats, Floats, tuple[float, float]]:
    """Both projected onto the plane in which all of them together vary most.

    Their units differ, so each dimension is scaled to the same distance between its 5th and 95th
    percentile before. One that is the same in nearly all actions has no such distance and is left
    out: its rare exceptions, scaled up, would be all there is to see.

    Returns:
        [N, 2], [M, 2], and the share of the variance along each axis.
    """
    both = np.concatenate([first, latest])
    low, high = np.percentile(both, (5, 95), axis=0)
    moves = high > low
    scaled = np.where(moves, (both - both.mean(axis=0)) / np.where(moves, high - low, 1), 0)
    _, lengths, directions = np.linalg.svd(scaled, full_matrices=False)
    variance = lengths**2 / max(float((lengths**2).sum()), 1e-12)
    plane = scaled @ directions[:2].T
    return plane[: len(first)], plane[len(first) :], (float(variance[0]), float(variance[1]))


def coverage_panels(groups: Sequence[Group]) -> list[Panel]:
    """A projection and a histogram of each dimension, for each group with actions."""
    panels = []
    for number, group in enumerate(groups):
        if (coverage := coverage_of(group)) is None:
            continue
        suffix = f": {group.label}" if len(groups) > 1 else ""
        panels.append(_projection(f"actions-plane-{number}", suffix, coverage))
        for dimension in range(coverage.first.shape[1]):
            panels.append(_histogram(f"actions-{number}-{dimension}", suffix, coverage, dimension))
    return panels


def _projection(name: str, suffix: str, coverage: Coverage) -> Panel:
    def paint(axes: Axes) -> None:
        first, latest, shares = principal_plane(coverage.first, coverage.latest)
        before, after = coverage.iterations
        for points, colour, marker, iteration in (
            (first, GREY, "o", before),
            (latest, ORANGE, "D", after),
        ):
            chosen = np.linspace(0, len(points) - 1, min(_DOTS, len(points))).round().astype(int)
            axes.plot(
                *points[chosen].T,
                linestyle="none",
                marker=marker,
                markersize=2.4,
                markeredgewidth=0,
                color=colour,
                alpha=0.55,
                label=f"iteration {iteration}",
            )
        axes.set_xlabel(f"first direction ({shares[0]:.0%} of variance)")
        axes.set_ylabel(f"second ({shares[1]:.0%})")
        axes.grid(visible=False)
        axes.legend(loc="upper right", markerscale=1.8, ncols=2, columnspacing=1, handletextpad=0.2)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.14 * (high - low))

    return draw(name, f"Actions, projected{suffix}", paint, SMALL)


def _histogram(name: str, suffix: str, coverage: Coverage, dimension: int) -> Panel:
    def paint(axes: Axes) -> None:
        columns = [values[:, dimension] for values in (coverage.first, coverage.latest)]
        low, high = np.min(np.concatenate(columns)), np.max(np.concatenate(columns))
        # By the square root of the samples: finer bins would show their scatter.
        bins = min(_MOST_BINS, max(6, round(min(map(len, columns)) ** 0.5)))
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        first, latest = (np.histogram(column, edges)[0] / len(column) for column in columns)
        axes.stairs(first, edges, fill=True, color=GREY, alpha=0.45)
        axes.stairs(latest, edges, color=ORANGE, linewidth=1.6)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    known = dimension < ACTION_DIM
    title = ACTION_DIMENSIONS[dimension] if known else f"dimension {dimension}"
    return draw(name, f"Share of actions by {title}{suffix}", paint, SMALL)
