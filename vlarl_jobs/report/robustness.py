"""The section on success in perturbed scenes."""

from __future__ import annotations

from collections.abc import Sequence

from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.robust_evaluations import START, TRAINED, Loss, Robustness
from vlarl_jobs.report.sections import Cell, Rate, Section, Table


def robustness(groups: Sequence[Group]) -> Section | None:
    """The section; None where no scenes were perturbed."""
    known = [(run.name, one) for group in groups for run in group.runs for one in run.robustness]
    if not known:
        return None
    tables = []
    for name, one in known:
        of = f" of {name} ({one.path.name})" if len(known) > 1 else ""
        tables.append(rates(one, f"Success{of}"))
        if losses := one.losses():
            tables.append(_losses(losses, f"Where the trained policy{of} loses"))
    return Section(
        "robustness",
        "Robustness",
        "Greedy episodes from official initial states, in the suite's own scenes and in those of "
        "LIBERO-PRO: objects stand elsewhere (position) or look otherwise (object), other words "
        "(language), another goal in the same scene (task). What a policy loses from the first row "
        "to the others is what it learned by heart. Intervals are 95 %.",
        tables=tables,
    )


def rates(known: Robustness, title: str = "") -> Table:
    """Success of each policy under each perturbation, all tasks together."""
    both = len(known.policies) > 1
    rows = []
    for perturbation in known.perturbations:
        scores = [known.total(policy, perturbation) for policy in known.policies]
        row: list[Cell] = [perturbation, *(Rate.of(one) if one else "–" for one in scores)]
        if both:
            difference = known.difference(perturbation)
            row.append(difference.text if difference else "–")
        rows.append(row)
    head = ["perturbation", *known.policies, *(["trained less start"] if both else [])]
    return Table(head, rows, title=title)


def _losses(losses: Sequence[Loss], title: str) -> Table:
    rows: list[list[Cell]] = [
        [
            loss.perturbation,
            str(loss.task),
            loss.difference.base.instruction,
            Rate.of(loss.difference.base),
            Rate.of(loss.difference.score),
            loss.difference.text,
        ]
        for loss in losses
    ]
    head = ["perturbation", "task", "instruction", START, TRAINED, "trained less start"]
    return Table(head, rows, title=title)
