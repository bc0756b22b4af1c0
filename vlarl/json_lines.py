"""Files of JSON objects, one a line, that a crash may cut short and that are gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlarl.errors import FatalError
from vlarl.files import force_to_disk


class DamagedFileError(FatalError):
    """A file that can't be read; the message names the file and, where one is damaged, the line."""


def placed_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object with its place, 'FILE, line N'; none where there is no file.

    What follows the last line break is left out: its writer hasn't finished it, or was killed.

    Raises:
        DamagedFileError: another line is no object.
    """
    if not path.exists():
        return
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DamagedFileError(f"{path}: can't be read ({error.strerror})") from error
    for number, line in enumerate(whole, start=1):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            problem = f"{place}: damaged ({error}); mend or remove that line"
            raise DamagedFileError(problem) from error
        if not isinstance(row, dict):
            raise DamagedFileError(f"{place}: not an object; mend or remove that line")
        yield place, row


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of `placed_lines`, which says what it raises."""
    return [row for _, row in placed_lines(path)]


class JsonLines:
    """Appends durably. Opened again, it drops the half line that a crash left at the end."""

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Reads what is there.

        Args:
            path: the file.
            keep: which of its objects stay; none: all.

        Raises:
            DamagedFileError: a line is no object, or lacks what `keep` looks at.
        """
        self._path = path
        self.rows: list[dict[str, Any]] = []
        """What the file holds."""
        for place, row in placed_lines(path):
            try:
                if keep is None or keep(row):
                    self.rows.append(row)
            except (KeyError, TypeError) as error:
                problem = f"{place}: not a line of this file ({error!r}); mend or remove that line"
                raise DamagedFileError(problem) from error
        kept = "".join(map(_line, self.rows)).encode()
        if path.exists() and path.read_bytes() != kept:
            partial = path.with_suffix(".partial")
            partial.write_bytes(kept)
            force_to_disk(partial)
            partial.replace(path)
            force_to_disk(path.parent)

    def append(self, row: Mapping[str, object]) -> None:
        """Adds an object; it is on disk when this returns."""
        line = _line(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(json.loads(line))


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row) + "\n"
