"""OUT/failures.jsonl: which runs of a table failed, when and how, even if they finished later."""

from __future__ import annotations

import time
from pathlib import Path

from vlarl.json_lines import JsonLines, read_lines

_FILE = "failures.jsonl"


def record_failure(out: Path, name: str, how: str) -> None:
    """Adds a line.

    Args:
        out: the table's folder.
        name: of the run.
        how: it ended: exit code, log and last lines.
    """
    row = {"run": name, "how": how, "ended_timestamp_seconds": time.time()}
    JsonLines(out / _FILE).append(row)


def read_failures(out: Path) -> dict[str, str]:
    """By run, the first line of how it failed last."""
    rows = read_lines(out / _FILE)
    return {row["run"]: row["how"].partition("\n")[0] for row in rows}
