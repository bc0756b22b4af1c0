"""What the page's sections consist of; a template lays them out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlarl_jobs.report.records import Score

if TYPE_CHECKING:  # words are wanted without matplotlib and OpenCV, too
    from vlarl_jobs.report.figures.panel import Panel
    from vlarl_jobs.report.films import Clip


@dataclass(frozen=True)
class Rate:
    """A success rate in a table: as numbers, and as a dot with its interval."""

    value: float
    low: float
    high: float
    text: str

    @classmethod
    def of(cls, score: Score) -> Rate:
        """With Wilson's interval."""
        low, high = score.interval
        text = f"{percent(score.rate)} ({percents(low, high)}{given_up(score)})"
        return cls(score.rate, low, high, text)


Cell = str | Rate


@dataclass(frozen=True)
class Table:
    """Rows under heads."""

    head: list[str]
    rows: list[list[Cell]]
    total: bool = False
    """Whether the last row sums the others up."""
    title: str = ""


@dataclass(frozen=True)
class Tile:
    """One number that matters."""

    name: str
    value: str
    detail: str
    small: bool = False
    """Whether the value is words rather than a number."""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    key: str
    """Its address on the page."""
    title: str
    reading: str
    """How to read it, in a sentence or two."""
    tiles: list[Tile] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    columns: int = 3
    """Pictures side by side on a desktop."""
    tables: list[Table] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Long texts by their title, folded up."""


def percent(share: float) -> str:
    """A share as a whole percentage; a dash where it isn't known."""
    return "–" if math.isnan(share) else f"{share:.0%}".replace("%", " %")


def number(value: float | None, form: str) -> str:
    """A number as `form` writes it; a dash where it isn't known."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def percents(low: float, high: float) -> str:
    """An interval of shares."""
    return f"{low:.0%} to {high:.0%}".replace("%", " %") if low != high else percent(low)


def given_up(score: Score) -> str:
    """A further half-sentence on episodes that were given up; empty where none were."""
    return f"; {score.missing} given up, which count as failed" if score.missing else ""


def duration(seconds: float) -> str:
    """As people write it: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
