"""How far a job is: a bar a task, with the time that is left."""

from __future__ import annotations

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

from vlarl.terminal import PlainConsole, text_column


class TaskBars:
    """Bars on standard error; where that is no terminal, they appear once, at the end.

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
