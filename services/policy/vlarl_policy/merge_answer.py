"""How the engine's process says that a merge has ended: by a file that appears whole.

A call that asked would be answered between two steps of the engine. Whoever asked would then find
it in the next step, and wait for all of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class MergeError(RuntimeError):
    """What stopped a merge. Nothing has changed."""


def write_answer(file: Path, answer: Mapping[str, int] | str) -> None:
    """Writes the merged weights' checksums by layer, or a sentence: what stopped it."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(file)


def read_answer(file: Path) -> dict[str, int] | None:
    """Takes the checksums away; none: there is no answer yet.

    Raises:
        MergeError: what stopped it.
    """
    if not file.exists():
        return None
    answer: dict[str, int] | str = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    if isinstance(answer, str):
        raise MergeError(answer)
    return answer
