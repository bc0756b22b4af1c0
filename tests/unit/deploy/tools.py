"""The tools that judge what is deployed, and the code that makes the dashboards."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu")

Object = dict[str, Any]


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


@cache
def built(overlay: str) -> list[Object]:
    """What kustomize makes of one of OVERLAYS."""
    return _kustomized(KUBERNETES / "overlays" / overlay)


def built_with(components: Sequence[str]) -> list[Object]:
    """The base with components that need be in no overlay."""
    with tempfile.TemporaryDirectory(dir=KUBERNETES / "overlays", prefix=".") as folder:
        listed = ", ".join(f"../../components/{component}" for component in components)
        text = f"resources: [../../base]\ncomponents: [{listed}]\n"
        (Path(folder) / "kustomization.yaml").write_text(text)
        return _kustomized(Path(folder))


def _kustomized(folder: Path) -> list[Object]:
    command = [tool("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


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
