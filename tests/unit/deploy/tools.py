"""The tools that judge what is deployed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Path of a program, from this environment or the system; skips the test where it isn't."""
    found = find_tool(name)
    if found is None:
        pytest.skip(f"{name} is not installed here (`make setup` brings it where it can)")
    return found


def find_tool(name: str) -> str | None:
    """The same; None where it isn't."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)
