"""Commands in hints are such as can be pasted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vlarl.invocation import invocation


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of an environment that nobody has activated."""
    script = tmp_path / "my env" / "bin" / "vlarl"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    return script


def test_a_command_is_named_as_it_can_be_typed(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invocation() == "'my env/bin/vlarl'"
    monkeypatch.chdir("/")
    monkeypatch.setenv("PATH", str(script.parent))
    assert invocation() == "vlarl"


def test_elsewhere_it_is_the_whole_path(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    (script.parent / "below").mkdir()
    monkeypatch.chdir("below")
    assert invocation() == f"'{script}'"
    assert invocation("tensorboard") == "tensorboard", "not installed beside this Python"
