"""A table of ablations from whatever runs there are: on the terminal, table.json and table.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import rich.table

from vlarl.files import replace_text
from vlarl.json_lines import DamagedFileError
from vlarl_jobs.ablation.failures import read_failures
from vlarl_jobs.ablation.numbers import Outcome, Row, Spread, outcome, rows_of
from vlarl_jobs.ablation.plan import Ablation, Standing, standing
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.sections import duration, percent

_UNKNOWN = "–"


@dataclass(frozen=True)
class AblationTable:
    """What is shown and written."""

    name: str
    first: str
    last_iterations: int
    rows: list[Row]
    remarks: list[str]
    """About runs that aren't finished, a sentence each; they count in no number."""
    folders: list[Path]
    """Of the runs that have an iteration, finished or not."""

    @property
    def head(self) -> list[str]:
        """Of the columns; docs/ablations.md explains them."""
        return [
            "variant",
            "seeds",
            "start %",
            "end %",
            f"− {self.first}",
            "training %",
            "episodes",
            "time",
            "paper %",
            "sign",
        ]

    @property
    def cells(self) -> list[list[str]]:
        """Of the rows."""
        return [_cells(row) for row in self.rows]


def read_table(ablation: Ablation) -> AblationTable:
    """Reads all run folders; a damaged one is a remark.

    Raises:
        ConfigError: a folder holds a run of another configuration.
    """
    standings, damages = [], []
    for planned in ablation.runs:
        try:
            standings.append(standing(planned))
        except (ReportError, DamagedFileError) as damage:
            damages.append(f"{planned.name} can't be read: {damage}")
    last = ablation.config.last_iterations
    outcomes: dict[str, list[Outcome]] = {}
    for one in standings:
        if one.finished and one.run is not None:
            outcomes.setdefault(one.planned.variant, []).append(outcome(one.run, last))
    failures = read_failures(ablation.out)
    return AblationTable(
        name=ablation.config.name,
        first=ablation.first,
        last_iterations=last,
        rows=rows_of(ablation.config, outcomes),
        remarks=[*_remarks(standings, failures), *damages],
        folders=[one.planned.folder for one in standings if one.run is not None],
    )


def write_table(table: AblationTable, out: Path) -> None:
    """Writes OUT/table.json and OUT/table.md, each whole or not at all."""
    content = {
        "name": table.name,
        "first": table.first,
        "last_iterations": table.last_iterations,
        "variants": [asdict(row) for row in table.rows],
        "remarks": table.remarks,
    }
    for name, text in (
        ("table.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n"),
        ("table.md", _markdown(table)),
    ):
        replace_text(out / name, text)


def rich_table(table: AblationTable) -> rich.table.Table:
    """For the terminal."""
    shown = rich.table.Table(title=f"{table.name}: mean over seeds (lowest to highest)")
    for head in table.head:
        shown.add_column(head)
    for cells in table.cells:
        shown.add_row(*cells)
    return shown


def _remarks(standings: Iterable[Standing], failures: dict[str, str]) -> Iterable[str]:
    for one in standings:
        if one.finished or not one.begun:
            continue
        scored = [row for row in one.run.evaluations if row.total.episodes] if one.run else []
        latest = (
            f", greedy success {percent(scored[-1].total.rate)} after {scored[-1].iteration}"
            if scored
            else ""
        )
        ended = failures.get(one.planned.name)
        how = f"failed: {ended}" if ended else "not finished"
        yield f"{one.planned.name} {how} ({one.iterations}{latest})"


def _markdown(table: AblationTable) -> str:
    lines = [f"| {' | '.join(table.head)} |", f"|{' --- |' * len(table.head)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in table.cells]
    lines += ["", *(f"- {remark}" for remark in table.remarks)] if table.remarks else []
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    return [
        row.variant,
        f"{len(row.seeds)}/{row.wanted}",
        _spread(row.start, _rate),
        _spread(row.end, _rate),
        _spread(row.difference, _signed),
        _spread(row.training, _rate),
        _spread(row.episodes, lambda value: f"{value:.0f}"),
        duration(row.seconds.mean) if row.seconds else _UNKNOWN,
        _paper(row),
        row.agrees or _UNKNOWN,
    ]


def _paper(row: Row) -> str:
    if row.paper is None:
        return _UNKNOWN
    difference = "" if row.paper_difference is None else f" ({_signed(row.paper_difference)})"
    return _rate(row.paper) + difference


def _spread(spread: Spread | None, write: Callable[[float], str]) -> str:
    """Mean and range; the mean alone where that is all there is."""
    if spread is None:
        return _UNKNOWN
    mean, low, high = write(spread.mean), write(spread.low), write(spread.high)
    return mean if low == high else f"{mean} ({low} to {high})"


def _rate(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
