"""What people read: plain text, whatever stands in it and whatever the terminal can show.

Our words stand beside those of services, files and users, so nothing that is printed is markup:
square brackets are brackets. Colour is the style of a piece, `say(("error:", "red"), f" {error}")`.
What a terminal's encoding lacks is written with what it has; a table is folded to the terminal's
width, or wider where words wouldn't fit, and whole where no terminal is.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import rich.progress
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import TextColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
Piece = str | tuple[str, str]
"""Text, or text and its style."""

_LOOKALIKES = {
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "±": "+/-",
    "→": "->",
    "←": "<-",
    "…": "...",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "•": "*",
    "·": ".",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "✓": "+",
    "█": "#",
    "\u00a0": " ",
    "\u202f": " ",
}
"""Our own signs in ASCII."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_VISIBLE = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\n\t"}
_ANY_WIDTH = 100_000


def use_lookalikes() -> None:
    """Lets this process's output survive every encoding: what one lacks becomes a look-alike or,
    where there is none, a backslash's escape. Called once, by programs.
    """
    codecs.register_error("vlarl.lookalikes", _lookalikes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vlarl.lookalikes")


def _lookalikes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = (_LOOKALIKES.get(sign) or _escaped(sign) for sign in lacking)
    return "".join(shown), error.end


def _escaped(sign: str) -> str:
    return sign.encode("ascii", "backslashreplace").decode("ascii")


def visible(text: str) -> str:
    """The text with its control characters as escapes, so that it can't command a terminal; line
    breaks and tabs stay.
    """
    return text.translate(_VISIBLE)


class PlainConsole(Console):
    """Prints text as it is: no markup, no emoji codes, no highlighting, no lines broken."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **how: Any) -> Text:  # noqa: ANN401 - Console's options
        """Text as rich shows it, in a line or a cell."""
        return super().render_str(visible(text), **how)


class Whole:
    """A table of which no word is cut, however narrow the terminal."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update(width=_ANY_WIDTH, no_wrap=False, overflow="fold")
        wanted = Measurement.get(console, options, self._table)
        width = max(console.width, wanted.minimum) if console.is_terminal else wanted.maximum
        self._share(width - wanted.minimum, console, options)
        yield from console.render(self._table, options.update(width=width))

    def _share(self, spare: int, console: Console, options: ConsoleOptions) -> None:
        """Gives each column its longest word, and its share of what is left of the width."""
        ranges = []
        for column in self._table.columns:
            cells = [
                Measurement.get(console, options, one) for one in (column.header, *column.cells)
            ]
            ranges.append((max(c.minimum for c in cells), max(c.maximum for c in cells)))
        wish = sum(high - low for low, high in ranges)
        for column, (low, high) in zip(self._table.columns, ranges, strict=True):
            column.width = low + (high - low) * min(spare, wish) // max(1, wish)


def styled(*pieces: Piece) -> Text:
    """Pieces as one text, each in its own style."""
    parts = ((piece, "") if isinstance(piece, str) else piece for piece in pieces)
    return Text.assemble(*((visible(text), style) for text, style in parts))


def say(*pieces: Piece, stderr: bool = False) -> None:
    """Prints a line."""
    PlainConsole(stderr=stderr).print(styled(*pieces))


def complain(error: object) -> None:
    """Prints what ends a command."""
    say(("error:", "red"), f" {error}", stderr=True)


def write(document: str) -> None:
    """Prints a document for programs or files, to the letter."""
    sys.stdout.write(document)
    sys.stdout.flush()


def show(table: Table) -> None:
    """Prints a table."""
    PlainConsole().print(Whole(table))


def text_column(template: str, style: str = "none") -> TextColumn:
    """A column of a progress bar: its template, as rich fills it, and the style of all of it."""
    return TextColumn(template, style=style, markup=False)


def track(items: Sequence[T], doing: str) -> Iterable[T]:
    """The items one by one, behind a bar that goes with the last."""
    return rich.progress.track(items, doing, console=PlainConsole(), transient=True)


def waiting(text: str) -> Status:
    """A context with a spinner on standard error, where that is a terminal."""
    # A string would be markup there; the spinner's signs are ASCII.
    return PlainConsole(stderr=True).status(styled(text), spinner="line")


def clock(seconds: float) -> str:
    """A duration as people write it: 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
