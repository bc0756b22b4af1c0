"""A table's numbers: by variant over its seeds, and against the first variant seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from vlarl.config import AblationConfig
from vlarl_jobs.report.run_folder import Run

Agreement = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Self | None:
        """Of those that are known; None: none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(sum(known) / len(known), min(known), max(known))


@dataclass(frozen=True)
class Outcome:
    """What came of a finished run. Rates are shares of 1."""

    seed: int
    start: float | None
    """Greedy success before training; None: wasn't evaluated."""
    end: float | None
    """Greedy success after the last iteration."""
    training: float
    """Success of the episodes of the last iterations, sampled."""
    episodes: float
    """Learned from."""
    seconds: float
    """Of work: iterations and evaluations."""


@dataclass(frozen=True)
class Row:
    """A variant."""

    variant: str
    seeds: list[int]
    """Of the finished runs, which are all that counts."""
    wanted: int
    """Seeds in all."""
    start: Spread | None
    end: Spread | None
    difference: Spread | None
    """Greedy success at the end, minus the first variant's with the same seed."""
    training: Spread | None
    episodes: Spread | None
    seconds: Spread | None
    paper: float | None
    """The paper's success, as a share."""
    paper_difference: float | None
    """The paper's, minus what it compares with."""
    agrees: Agreement | None
    """Whether all seeds' differences have the sign of the paper's; open: some do."""


def outcome(run: Run, last: int) -> Outcome:
    """The numbers of a finished run.

    Args:
        run: as its folder was read.
        last: iterations behind the training success.
    """
    rates = {one.iteration: one.total.rate for one in run.evaluations if one.total.episodes}
    counts, successes = run.metric("episodes"), run.metric("success_rate")
    return Outcome(
        seed=run.config.seed,
        start=rates.get(0),
        end=rates.get(run.wanted),
        training=float(np.average(successes[-last:], weights=counts[-last:])),
        episodes=float(counts.sum()),
        seconds=3600 * run.worked_hours,
    )


def rows_of(config: AblationConfig, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Row]:
    """A row a variant, in the file's order.

    Args:
        config: the table.
        outcomes: by variant, of its finished runs.
    """
    first = next(iter(config.variants))
    reference = {one.seed: one.end for one in outcomes.get(first, [])}
    return [
        _row(config, name, first, outcomes.get(name, []), reference) for name in config.variants
    ]


def _row(
    config: AblationConfig,
    name: str,
    first: str,
    runs: Sequence[Outcome],
    reference: Mapping[int, float | None],
) -> Row:
    # Seeds are paired: what a seed draws, placements above all, is the same in both.
    differences = [
        one.end - other
        for one in runs
        if name != first and one.end is not None and (other := reference.get(one.seed)) is not None
    ]
    paper_difference = _paper_difference(config, name, first)
    paper = config.paper.get(name)
    return Row(
        variant=name,
        seeds=[one.seed for one in runs],
        wanted=len(config.seeds),
        start=Spread.of([one.start for one in runs]),
        end=Spread.of([one.end for one in runs]),
        difference=Spread.of(differences),
        training=Spread.of([one.training for one in runs]),
        episodes=Spread.of([one.episodes for one in runs]),
        seconds=Spread.of([one.seconds for one in runs]),
        paper=paper.success / 100 if paper else None,
        paper_difference=paper_difference,
        agrees=_agreement(differences, paper_difference),
    )


def _paper_difference(config: AblationConfig, name: str, first: str) -> float | None:
    paper, whole = config.paper.get(name), config.paper.get(first)
    if paper is None or name == first:
        return None
    against = paper.against if paper.against is not None else whole.success if whole else None
    return None if against is None else (paper.success - against) / 100


def _agreement(ours: Sequence[float], papers: float | None) -> Agreement | None:
    if not ours or not papers:
        return None
    same = [one * papers > 0 for one in ours]
    opposite = [one * papers < 0 for one in ours]
    return "yes" if all(same) else "no" if all(opposite) else "open"
