"""Files and pipes of text are UTF-8, whatever the locale: the encoding is always said."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.roots import PYTHONPATH

ROOT = Path(__file__).parents[3]
OURS = ("vlarl", "vlarl_cli", "vlarl_jobs", "services")
FOLDERS = (*OURS, "benchmarks", "examples", "scripts", "deploy")
OTHER_OPENERS = {"Image", "os", "fsspec", "webbrowser", "zipfile", "tarfile"}
"""Whose `open` isn't that of a text file."""


def silent_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that read or write text in the locale's encoding."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        given = {one.arg: one.value for one in call.keywords}
        if "encoding" in given or None in given:
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        texts = any(
            isinstance(given.get(key), ast.Constant) for key in ("text", "universal_newlines")
        )
        few = {"read_text": 1, "write_text": 2}.get(name, 0)
        if texts or len(call.args) < few:
            yield call
        elif name == "open" and owner not in OTHER_OPENERS:
            place = 1 if isinstance(call.func, ast.Name) else 0
            mode = given.get("mode", call.args[place] if len(call.args) > place else None)
            if mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value)):
                yield call


def test_every_text_file_says_its_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in silent_calls(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], 'add encoding="utf-8"'


@pytest.mark.parametrize(
    "written",
    ["Path(x).read_text()", "p.write_text(s)", "open(p)", "p.open('w')", "run(c, text=True)"],
)
def test_each_of_these_is_found(written: str) -> None:
    assert list(silent_calls(ast.parse(written)))


@pytest.mark.parametrize(
    "written",
    [
        "p.read_text(encoding='utf-8')",
        "p.read_text('utf-8')",
        "p.open('rb')",
        "Image.open(p)",
        "open(p, 'wb')",
        "run(c, encoding='utf-8')",
    ],
)
def test_none_of_these_is(written: str) -> None:
    assert not list(silent_calls(ast.parse(written)))


def test_files_are_utf8_in_every_locale(tmp_path: Path) -> None:
    """A configuration with names of all the world is read and written alike in all of them."""
    file = tmp_path / "mine.toml"
    file.write_text('[policy]\ncheckpoint = "Prüfstand/桃"\n', encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from vlarl.config import load_config, save_config\n"
        "config = load_config(Path(sys.argv[1])); save_config(config, Path(sys.argv[2]))\n"
        "assert str(config.policy.checkpoint) == 'Pr\\xfcfstand/\\u6843'\n"
    )
    without = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code, str(file), str(tmp_path)]
    done = subprocess.run(
        command,
        env={**without, **locale, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "vlarl/" not in done.stderr, "a warning of a default encoding of ours"
