"""The scalars of a training, in metrics.jsonl and on TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vlarl.json_lines import JsonLines


class RunLog:
    """A file and a board that say the same, and hold nothing newer than the checkpoint."""

    def __init__(
        self, path: Path, board: Path, *, keep: Callable[[dict[str, Any]], bool], following: int
    ) -> None:
        """Brings both in step with the checkpoint that is gone on from.

        Args:
            path: the file.
            board: TensorBoard's folder.
            keep: which of the file's lines stay; training writes the others again.
            following: the step that is written next; TensorBoard forgets those from there on.

        Raises:
            DamagedFileError: a line of the file can't be read.
        """
        self._lines = JsonLines(path, keep)
        self._board = SummaryWriter(str(board), purge_step=following)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the file holds."""
        return self._lines.rows

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a line to the file alone."""
        self._lines.append(row)

    def write(self, row: Mapping[str, object], scalars: Mapping[str, float], step: int) -> None:
        """Adds a line, and the scalars to TensorBoard."""
        self._lines.append(row)
        show(self._board, scalars, step)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        self._board.close()


def show(board: SummaryWriter, scalars: Mapping[str, float], step: int) -> None:
    """Adds scalars to TensorBoard, where they are seen at once."""
    for name, value in scalars.items():
        board.add_scalar(name, value, step)
    board.flush()
