"""How far a job is: a bar a task, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vlarl.terminal import PlainConsole, clock, text_column

LINE_SECONDS = 30.0
"""Between two lines of a job that nobody watches in a terminal."""


class TaskBars:
    """Bars on standard error. Where that is no terminal, they appear once, at the end, and a line
    now and then says how far the job is.

    Args:
        totals: Each task's label and number of episodes.
    """

    def __init__(self, totals: Sequence[tuple[str, int]]) -> None:
        self._progress = Progress(
            text_column("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=PlainConsole(stderr=True),
        )
        self._bars = {label: self._progress.add_task(label, total=total) for label, total in totals}
        self._total = sum(total for _, total in totals)
        self._last_line = time.monotonic()
        self._first_line: tuple[float, float] | None = None
        """When the first line was printed, and the number of episodes it told."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, label: str, done: int) -> None:
        """Moves a task's bar to `done` episodes."""
        self._progress.update(self._bars[label], completed=done)
        now = time.monotonic()
        if not self._progress.console.is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._print_line(now)

    def _print_line(self, now: float) -> None:
        done = sum(task.completed for task in self._progress.tasks)
        remaining = ""
        # From the first line on: what had been done before the job began cost it no time.
        if self._first_line is None:
            self._first_line = now, done
        elif done > self._first_line[1]:
            pace = (now - self._first_line[0]) / (done - self._first_line[1])
            remaining = f"  ETA {clock(pace * (self._total - done))}"
        self._progress.console.print(f"{done:.0f} of {self._total} episodes{remaining}")
