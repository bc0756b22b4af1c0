"""The check's numbers: printed and saved as they come."""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import describe_machine

_BEGAN = time.perf_counter()
_MARK = {None: "", True: "ok", False: "NO"}

Value = float | int | str | bool | list[int] | list[str] | dict[str, bool]


def now() -> float:
    """Seconds since the start."""
    return time.perf_counter() - _BEGAN


def say(text: str) -> None:
    """Prints a line of progress."""
    print(f"[{now():6.1f}] {text}", flush=True)


@dataclass(frozen=True)
class Row:
    """One number."""

    name: str
    """What was measured."""
    value: Value
    """The number, in `unit`, or another finding."""
    unit: str
    """Its unit, where it has one."""
    note: str
    """What a reader needs to know beside it."""
    ok: bool | None
    """Whether it is what was wanted; none: nothing was."""

    @property
    def shown(self) -> str:
        """The value for people."""
        return f"{self.value:,.5g}" if isinstance(self.value, float) else str(self.value)


class Results:
    """All rows, and what went wrong."""

    def __init__(self, out: Path) -> None:
        """Takes the folder of results.json and report.txt."""
        self._out = out
        self._rows: list[Row] = []
        self._errors: list[str] = []
        self._machine = describe_machine()

    def add(
        self, name: str, value: Value, unit: str = "", note: str = "", ok: bool | None = None
    ) -> None:
        """Takes a number, and whether it is what was wanted."""
        row = Row(name, value, unit, note, ok)
        self._rows.append(row)
        behind = f"  {_MARK[ok]}" if _MARK[ok] else ""
        say(f"{name}: {row.shown} {unit}{behind}{f'  ({note})' if note else ''}")
        self._save()

    def fail(self, what: str) -> None:
        """Takes the exception that is being handled: `what` goes without its numbers."""
        trace = traceback.format_exc().strip()
        self._errors.append(f"{what}: {trace}")
        say(f"{what} FAILED: {trace.splitlines()[-1][:400]}")
        self._save()

    @property
    def unwanted(self) -> int:
        """Numbers that aren't what was wanted, and stages that failed."""
        return sum(row.ok is False for row in self._rows) + len(self._errors)

    @property
    def report(self) -> str:
        """The table, and the errors with their traces."""
        lines = [
            f"{row.name:<66} {row.shown:>14} {row.unit:<10} {_MARK[row.ok]:<4} {row.note}".rstrip()
            for row in self._rows
        ]
        return "\n".join([*lines, "", *self._errors]) + "\n"

    def _save(self) -> None:
        content = {
            "seconds": round(now(), 1),
            "machine": self._machine,
            "rows": [asdict(row) for row in self._rows],
            "errors": self._errors,
        }
        (self._out / "results.json").write_text(
            json.dumps(content, indent=1) + "\n", encoding="utf-8"
        )
        (self._out / "report.txt").write_text(self.report, encoding="utf-8")
