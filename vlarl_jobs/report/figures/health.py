"""Whether both sides computed the same policy, and what swapping its weights cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from vlarl_jobs.report.figures.panel import Panel, decades_axis, draw, share_axis, steps_axis
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.theme import SERIES


@dataclass(frozen=True)
class Health:
    """One run's troubles, counted."""

    versions: tuple[int, int]
    """Policy versions that acted first and last."""
    largest_gap: float
    """Of a token's log-prob, between policy server and trainer."""
    longest_pause: float
    """Seconds in which a policy replica could start no action."""
    stale: float
    """Share of actions that an earlier version took; NaN where that wasn't recorded."""
    stopped: int
    """Updates that the KL bound cut short."""
    restarts: float
    """Simulators replaced; NaN where that wasn't recorded."""
    missing: int
    """Episodes of training given up."""
    resumptions: int | None
    """Times that the trainer was started again; None where that wasn't recorded."""


_LEAST_SHARE = 0.01
"""Where the axis of what lies outside the clip band ends, or noise would fill it."""
START_METRICS = ("start_outside_clip", "start_k3")
"""What should be next to nothing before an iteration's first step."""


def before_first_step(run: Run) -> dict[str, tuple[float, float]]:
    """Median and largest of `START_METRICS` over the iterations; NaN where a run lacks one."""
    found = {}
    for name in START_METRICS:
        values = run.metric(name)
        known = values[np.isfinite(values)]
        found[name] = (
            (float(np.median(known)), float(known.max())) if len(known) else (np.nan, np.nan)
        )
    return found


def health_of(run: Run) -> Health:
    """Adds a run's iterations up."""

    def known(name: str) -> list[float]:
        values = run.metric(name)
        return [float(value) for value in values[np.isfinite(values)]]

    stale, samples = run.metric("stale_actions"), run.metric("samples")
    recorded = np.isfinite(stale) & np.isfinite(samples)
    weight = samples[recorded].sum()
    return Health(
        versions=(run.iterations[0].policy_version, run.iterations[-1].policy_version),
        largest_gap=max(known("logprob_gap"), default=np.nan),
        longest_pause=max(known("publish_pause_seconds"), default=np.nan),
        stale=float((stale[recorded] * samples[recorded]).sum() / weight) if weight else np.nan,
        stopped=int(sum(known("kl_stopped"))),
        restarts=sum(known("simulator_restarts")) if run.has("simulator_restarts") else np.nan,
        missing=int(sum(known("missing_episodes"))),
        resumptions=len(run.starts) - 1 if run.starts else None,
    )


def health_panels(groups: Sequence[Group]) -> list[Panel]:
    """The gap, the pause, what was off before the first step, and staleness where there was any."""
    runs = [run for group in groups for run in group.runs]
    panels = [
        draw("logprob-gap", "Largest log-prob gap", lambda axes: _gap(axes, groups)),
        draw("publish-pause", "Pause of a weight swap", lambda axes: _pause(axes, groups)),
    ]
    if any(run.has("start_outside_clip") for run in runs):
        title = "Outside the clip band at the start"
        panels.append(draw("start-outside-clip", title, lambda axes: _outside(axes, groups)))
    if any(np.nansum(run.metric("stale_actions")) > 0 for run in runs):
        panels.append(draw("stale", "Stale actions", lambda axes: _stale(axes, groups)))
    return panels


def _gap(axes: Axes, groups: Sequence[Group]) -> None:
    _lines(axes, groups, "logprob_gap")
    decades_axis(axes)
    axes.set_ylabel("nats a token")


def _outside(axes: Axes, groups: Sequence[Group]) -> None:
    _lines(axes, groups, "start_outside_clip")
    axes.set_ylabel("share of ratios")
    high = axes.dataLim.ymax
    axes.set_ylim(0, max(_LEAST_SHARE, 1.1 * high if high < np.inf else 0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _pause(axes: Axes, groups: Sequence[Group]) -> None:
    _lines(axes, groups, "publish_pause_seconds", scale=1000)
    high = axes.dataLim.ymax
    axes.set_ylim(0, 1.1 * high if 0 < high < np.inf else 1.0)
    axes.set_ylabel("milliseconds")


def _stale(axes: Axes, groups: Sequence[Group]) -> None:
    _lines(axes, groups, "stale_actions")
    axes.set_ylabel("share of actions")
    share_axis(axes)


def _lines(axes: Axes, groups: Sequence[Group], metric: str, scale: float = 1.0) -> None:
    """Every run by itself: a mean would hide the one that matters."""
    for number, group in enumerate(groups):
        for run in group.runs:
            values = run.metric(metric) * scale
            if metric not in ("stale_actions", "start_outside_clip"):
                values[values <= 0] = np.nan  # no swap, or nothing to compare
            colour = SERIES[number % len(SERIES)]
            marker = "o" if len(values) < 40 else ""
            axes.plot(run.env_steps, values, color=colour, marker=marker, markersize=3, linewidth=1)
    steps_axis(axes)
