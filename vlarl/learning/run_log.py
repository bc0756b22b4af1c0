"""A file of JSON objects, one a line, that a crash may cut short and that is gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends durably. Opened again, it drops the half line that a crash left at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        whole = b""
        if path.exists():
            written = path.read_bytes()
            whole = written[: written.rfind(b"\n") + 1]
            if len(whole) < len(written):
                partial = path.with_suffix(".partial")
                partial.write_bytes(whole)
                partial.replace(path)
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        """What the file holds."""

    def append(self, row: Mapping[str, object]) -> None:
        """Adds an object; it is on disk when this returns."""
        line = json.dumps(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(json.loads(line))
