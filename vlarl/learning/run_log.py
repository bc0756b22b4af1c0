"""The scalars of a training, in metrics.jsonl and on the boards that a run has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlarl.json_lines import JsonLines
from vlarl.learning.boards import Board, Curves, Past


class RunLog:
    """A file and boards that say the same; the file holds nothing newer than the checkpoint."""

    def __init__(
        self,
        path: Path,
        boards: Sequence[Board],
        curves: Curves,
        *,
        keep: Callable[[dict[str, Any]], bool],
        scalars: Callable[[Mapping[str, Any]], Mapping[str, float]],
        following: int,
    ) -> None:
        """Brings all in step with the checkpoint that is gone on from.

        Args:
            path: the file.
            boards: where its lines are shown.
            curves: what the lines are there.
            keep: which of the file's lines stay; training writes the others again.
            scalars: what a line shows; none where it belongs to other curves.
            following: the place on the axis that is written next.

        Raises:
            DamagedFileError: a line of the file can't be read.
        """
        self._lines = JsonLines(path, keep)
        self._boards = boards
        self._curves = curves
        self._scalars = scalars
        found = ((row, scalars(row)) for row in self._lines.rows)
        shown = [(row[curves.axis], some) for row, some in found if some]
        for board in boards:
            board.begin(curves, Past(following, shown))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the file holds."""
        return self._lines.rows

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a line, and its scalars to the boards."""
        self._lines.append(row)
        self.show(self._curves, row[self._curves.axis], self._scalars(row))

    def show(self, curves: Curves, at: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars to the boards alone."""
        for board in self._boards:
            board.show(curves, at, scalars)

    def close(self) -> None:
        """Closes the boards."""
        for board in self._boards:
            board.close()
