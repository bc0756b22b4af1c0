"""Files of JSON objects, one a line, that someone may still be writing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlarl.errors import FatalError


class ReportError(FatalError):
    """A folder that can't be reported on; the message names the file and says what to do."""


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each object with its place, 'FILE, line N'; none where there is no file.

    What follows the last line break is left out: its writer hasn't finished it, or was killed.

    Raises:
        ReportError: another line is no object.
    """
    if not path.exists():
        return
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ReportError(f"{path}: can't be read ({error.strerror})") from error
    for number, line in enumerate(whole, start=1):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ReportError(f"{place}: damaged ({error}); mend or remove that line") from error
        if not isinstance(row, dict):
            raise ReportError(f"{place}: not an object; mend or remove that line")
        yield place, row
