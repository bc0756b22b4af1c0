"""What was trained, from where to where, at what cost: the page's beginning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vlarl_jobs.report.curves import window_of
from vlarl_jobs.report.figures.panel import short_number
from vlarl_jobs.report.figures.success import training_success
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.milestones import milestones
from vlarl_jobs.report.records import Score
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.sections import (
    Cell,
    Rate,
    Section,
    Table,
    Tile,
    duration,
    given_up,
    percent,
    percents,
)


def headline(groups: Sequence[Group]) -> Section:
    """Tiles of a single group, a table of several."""
    if len(groups) == 1:
        return Section("headline", "", _sentence(groups[0]), tiles=_tiles(groups[0]))
    reading = (
        f"{sum(len(group.runs) for group in groups)} runs of {len(groups)} configurations. Runs "
        "that differ in nothing but their seed are one row; its success counts the episodes of all "
        "of them, with Wilson 95 % intervals."
    )
    return Section("headline", "", reading, tables=[_comparison(groups)])


def _sentence(group: Group) -> str:
    config = group.first.config
    tasks = f"{len(config.tasks.indices)} task{'s' if len(config.tasks.indices) > 1 else ''}"
    seeds = f"seed{'s' if len(group.runs) > 1 else ''} {group.seeds}"
    progress = ", ".join(
        dict.fromkeys(
            f"{len(run.iterations)} of {run.config.trainer.iterations} iterations complete"
            + (", success enough" if run.wanted < run.config.trainer.iterations else "")
            for run in group.runs
        )
    )
    return (
        f"{'/'.join(config.policy.checkpoint.parts[-2:])}, trained by reinforcement learning on "
        f"{config.tasks.suite} ({tasks}), {seeds}; {progress}."
    )


def _tiles(group: Group) -> list[Tile]:
    runs = group.runs
    several = len(runs) > 1
    each = " in each run" if several else ""
    hours = _mean(runs, lambda run: run.worked_hours)
    episodes = _mean(runs, lambda run: float(run.metric("episodes").sum()))
    steps = _mean(runs, lambda run: float(run.env_steps[-1]))
    tiles = [
        *_success_tiles(group),
        Tile("Wall time", duration(hours * 3600), _dates(runs)),
        Tile("Episodes", short_number(round(episodes)), f"{short_number(steps)} steps{each}"),
    ]
    machines = dict.fromkeys(start.machine for run in runs for start in run.starts)
    if machines:
        versions = dict.fromkeys(f"vlarl {start.vlarl}" for run in runs for start in run.starts)
        tiles.append(Tile("Machine", "; ".join(machines), ", ".join(versions), small=True))
    return tiles


def _success_tiles(group: Group) -> list[Tile]:
    tiles = []
    known = milestones(group)
    if known:
        value = " → ".join(percent(one.total.rate) for one in known)
        detail = "; ".join(f"{one.when} {_counted(one.total)}" for one in known)
        tiles.append(Tile("Greedy success", value, detail))
    first, last = training_ends(group)
    window = window_of(group.first.metric("episodes"))
    over = f"{window} iterations" if window > 1 else "iteration"
    detail = f"sampled episodes of the first and the last {over}"
    tiles.append(Tile("Training success", f"{percent(first)} → {percent(last)}", detail))
    return tiles


def training_ends(group: Group) -> tuple[float, float]:
    """Success of training's first and last episodes, mean over the runs."""
    ends = []
    for run in group.runs:
        window = window_of(run.metric("episodes"))
        curve = training_success(run, run.env_steps).middle
        ends.append((float(curve[window - 1]), float(curve[-1])))
    firsts, lasts = zip(*ends, strict=True)
    return sum(firsts) / len(ends), sum(lasts) / len(ends)


def _counted(score: Score) -> str:
    return f"{score.successes} of {score.episodes} ({percents(*score.interval)}{given_up(score)})"


def _mean(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return sum(map(value, runs)) / len(runs)


def _dates(runs: Sequence[Run]) -> str:
    """From the first start to the last iteration's end, where they were recorded."""
    starts = [start.started_timestamp_seconds for run in runs for start in run.starts]
    name = "completed_timestamp_seconds"
    ends = [one.metrics[name] for run in runs for one in run.iterations if name in one.metrics]
    each = "mean of the runs; " if len(runs) > 1 else ""
    if not starts or not ends:
        return f"{each}iterations and evaluations"
    first, last = (
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in (min(starts), max(ends))
    )
    shown = last.removeprefix(first[:11]) if last[:10] == first[:10] else last
    return f"{each}{first} to {shown} UTC"


def _comparison(groups: Sequence[Group]) -> Table:
    rows: list[list[Cell]] = []
    for group in groups:
        known = milestones(group)
        first, last = training_ends(group)
        rates: list[Cell] = [Rate.of(one.total) for one in known]
        if len(rates) == 1:
            rates = ["–", *rates]
        rows.append(
            [
                group.label,
                group.seeds,
                *(rates or ["–", "–"]),
                f"{percent(first)} → {percent(last)}",
                short_number(round(_mean(group.runs, lambda r: float(r.metric("episodes").sum())))),
                short_number(_mean(group.runs, lambda r: float(r.env_steps[-1]))),
                duration(3600 * _mean(group.runs, lambda r: r.worked_hours)),
            ]
        )
    head = ["runs", "seeds", "first evaluation", "last evaluation", "training success"]
    return Table([*head, "episodes", "steps", "wall time"], rows)
