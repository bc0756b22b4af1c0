"""From scattered points to curves that can be read: smoothing, and runs laid over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlarl.intervals import wilson_interval
from vlarl_jobs.report.records import Floats

_EPISODES = 100
"""Behind a point of a smoothed success rate: enough for an interval of about 20 points."""
_LEAST, _MOST = 50, 5
"""A window is at least a fiftieth of a run, or a long one's curve would be a scribble, and at most
a fifth, or it would show nothing but its mean."""


@dataclass(frozen=True)
class Band:
    """A curve with what lies around it."""

    x: Floats
    middle: Floats
    low: Floats
    high: Floats


def window_of(episodes: Floats) -> int:
    """Iterations to smooth over.

    Args:
        episodes: [iterations], of each.
    """
    mean = float(np.mean(episodes))
    wanted = int(np.ceil(_EPISODES / mean)) if mean > 0 else 1
    wanted = max(wanted, len(episodes) // _LEAST)
    return max(1, min(wanted, len(episodes) // _MOST))


def trailing_sums(values: Floats, window: int) -> Floats:
    """[N], the sum of each value and those before it, `window` in all (fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stops = np.arange(1, len(values) + 1)
    summed: Floats = sums[stops] - sums[np.maximum(stops - window, 0)]
    return summed


def smoothed_success(x: Floats, rates: Floats, episodes: Floats, window: int) -> Band:
    """Success over the latest `window` iterations, with its Wilson 95 % intervals."""
    successes = trailing_sums(rates * episodes, window)
    counts = trailing_sums(episodes, window)
    pairs = zip(successes, counts, strict=True)
    low, high = np.array([wilson_interval(float(s), float(n)) for s, n in pairs]).T
    middle = np.divide(successes, counts, out=np.full_like(counts, np.nan), where=counts > 0)
    return Band(x, middle, low, high)


def smoothed(values: Floats, window: int) -> Floats:
    """Mean of the latest `window` values, NaN left out."""
    known = np.isfinite(values)
    counts = trailing_sums(known.astype(np.float64), window)
    sums = trailing_sums(np.where(known, values, 0.0), window)
    return np.where(known, sums / np.maximum(counts, 1.0), np.nan)


def over_runs(curves: Sequence[tuple[Floats, Floats]]) -> Band | None:
    """Mean, lowest and highest of several curves, each (x, y), where all of them go.

    Between its points a curve is a straight line; NaN are left out. None: there is no such stretch.
    """
    known = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
    if not known or any(len(x) == 0 for x, _ in known):
        return None
    first, last = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    if first > last:
        return None
    grid = np.unique(np.concatenate([x for x, _ in known]))
    grid = grid[(grid >= first) & (grid <= last)]
    return _around(grid, np.array([np.interp(grid, x, y) for x, y in known]))


def paired(points: Sequence[tuple[Floats, Floats]]) -> Band:
    """Mean, lowest and highest of several runs' first, second, ... points (x, y), as far as all
    have them, each at the mean of its places.
    """
    count = min(len(x) for x, _ in points)
    places = np.mean([x[:count] for x, _ in points], axis=0)
    return _around(places, np.array([y[:count] for _, y in points]))


def _around(x: Floats, values: Floats) -> Band:
    return Band(x, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
