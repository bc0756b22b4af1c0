"""The section on parity and health: what should never have anything to show."""

from __future__ import annotations

from collections.abc import Sequence

from vlarl_jobs.report.figures.health import (
    START_METRICS,
    before_first_step,
    health_of,
    health_panels,
)
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.milestones import after
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.sections import Cell, Rate, Section, Table, number, percent


def health(groups: Sequence[Group]) -> Section:
    """Of all runs."""
    rows: list[list[Cell]] = []
    for run in (run for group in groups for run in group.runs):
        found = health_of(run)
        bound = run.config.trainer.logprob_gap_bound
        rows.append(
            [
                run.name,
                f"{found.versions[0]} to {found.versions[1]}",
                number(found.largest_gap, ".1e") + (f" of {bound:g}" if bound else ""),
                number(found.longest_pause * 1000, ".0f") + " ms",
                percent(found.stale),
                str(found.stopped),
                str(found.missing),
                number(found.restarts, ".0f"),
                number(found.resumptions, ".0f"),
            ]
        )
    head = ["run", "policy versions", "largest gap", "longest pause", "stale actions"]
    head += ["updates cut short", "episodes given up", "simulators replaced", "trainer resumed"]
    return Section(
        "health",
        "Parity and health",
        "The gap is the largest difference between the log-prob that the policy server reported "
        "for a token and the trainer's own: near 1e-6 in float32 both compute the same policy. A "
        "run stops where one token in a thousand exceeds the bound (1e-4, or 0.05 in float16). The "
        "pause is how long a swap of weights kept a policy server from acting. Before an "
        "iteration's first step, no ratio should be outside the clip band, and k3 between the "
        "log-probs of server and trainer should be near 0, as long as no older version acted "
        "(staleness 0): what is there then is rounding, and no update made it.",
        panels=health_panels(groups),
        tables=[
            Table(head, rows),
            _start_table([run for group in groups for run in group.runs]),
            *_returns(groups),
        ],
    )


def _start_table(runs: Sequence[Run]) -> Table:
    """What each run's policies differed by from the policy that acted, before they learned."""
    rows: list[list[Cell]] = []
    for run in runs:
        found = before_first_step(run)
        numbers = [number(one, ".2g") for name in START_METRICS for one in found[name]]
        rows.append([run.name, str(run.config.trainer.staleness), *numbers])
    head = ["run", "staleness allowed", "outside the clip band, median", "largest"]
    head += ["k3, median", "largest"]
    return Table(head, rows, title="Before the first step of an iteration")


def _returns(groups: Sequence[Group]) -> list[Table]:
    """Where runs went back to their best checkpoint; nothing where none did."""
    rows: list[list[Cell]] = []
    for run in (run for group in groups for run in group.runs):
        for one in run.returns:
            ends = [run.evaluation_after(iterations) for iterations in (one.after, one.to)]
            fallen, best = ("–" if end is None else Rate.of(end.total) for end in ends)
            places = [after(number, number) for number in (one.after, one.to)]
            rows.append([run.name, places[0], fallen, places[1], best, f"{one.rate_scale:g}"])
    head = ["run", "went back", "from success", "to the policy", "of success", "rate from there on"]
    return [Table(head, rows, title="Returns to the best checkpoint")] if rows else []
