"""The tools that judge what is deployed, and the code that makes the dashboards."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


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


def dashboards_code() -> ModuleType:
    """deploy/grafana/build.py, which lies in no package."""
    specification = importlib.util.spec_from_file_location(
        "dashboards", ROOT / "deploy/grafana/build.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["dashboards"] = module  # its dataclasses look their module up
    specification.loader.exec_module(module)
    return module
