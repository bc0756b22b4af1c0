"""What isn't run, and what fails only sometimes, is named; in CI a skip may not hide anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.roots import PYTHONPATH
from vlarl.config.libero import has_simulator

ROOT = Path(__file__).parents[2]
HOOKS = """
from tests.skips import *
from tests.skips import (
    pytest_make_collect_report, pytest_runtest_makereport, pytest_sessionfinish,
    pytest_terminal_summary, pytest_testnodedown,
)
"""
TOOL = "import pytest\n\ndef test_tool():\n    pytest.skip('promtool is not installed here')\n"
GPU = "import pytest\n\ndef test_gpu():\n    pytest.skip('there is no CUDA device')\n"
MODULE = "import pytest\n\npytest.importorskip('grafana_of_nobody')\n\ndef test_more(): ...\n"
FLAKY = """
from pathlib import Path

def test_sometimes():
    marker = Path(__file__).with_name("seen")
    seen = marker.exists()
    marker.touch()
    assert seen
"""
NEVER = "def test_never():\n    assert False\n"
FINE = "def test_fine(): ...\n"
FEW_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist.plugin"}


def run_tests(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A session of its own, without what this one was started with."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "conftest.py").write_text(HOOKS, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, **FEW_PLUGINS, "PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.fixture
def skipping(tmp_path: Path) -> Path:
    """Skips of all kinds."""
    for name, content in (("tool", TOOL), ("gpu", GPU), ("module", MODULE), ("fine", FINE)):
        (tmp_path / f"test_{name}.py").write_text(content, encoding="utf-8")
    return tmp_path


def test_what_is_skipped_is_named(skipping: Path) -> None:
    done = run_tests(skipping, "-n", "2")
    assert done.returncode == 0, done.stdout
    assert "not run here: 3" in done.stdout
    assert "test_gpu.py (1): there is no CUDA device" in done.stdout
    assert "test_tool.py (1): promtool is not installed here" in done.stdout
    assert "test_module.py (1): could not import 'grafana_of_nobody'" in done.stdout


@pytest.mark.parametrize("name", ["CI", "VLARL_NO_SKIPS"])
def test_in_ci_only_what_a_machine_may_lack_is_skipped(skipping: Path, name: str) -> None:
    values = {"CI": "true", "VLARL_NO_SKIPS": "1"}
    options = ("-n", "2") if name == "CI" else ("--continue-on-collection-errors",)
    done = run_tests(skipping, *options, **{name: values[name]})
    assert done.returncode == 1, done.stdout
    for reason in ("could not import 'grafana_of_nobody'", "promtool is not installed here"):
        assert f"skipped, which it mustn't be where CI=true: {reason}" in done.stdout
    assert "not run here: 1\ntest_gpu.py (1)" in re.sub(r"=+ | =+", "", done.stdout)


def test_an_environment_that_lacks_what_it_is_for_runs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.skips.HAS_TORCH", False)
    monkeypatch.setattr("tests.skips.HAS_SIMULATOR", False)
    from tests.skips import check_environment

    with pytest.raises(pytest.UsageError, match="neither vLLM nor LIBERO"):
        check_environment()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the real script, in whose environments it finds this Python, or nothing to do."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/test.sh", tmp_path / "scripts")
    for environment, program in ((".venv", f'exec {sys.executable} "$@"'), (".venv-sim", "exit 0")):
        python = tmp_path / environment / "bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        python.chmod(0o755)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n  sim\n", encoding="utf-8")
    (tmp_path / "test_fine.py").write_text(FINE, encoding="utf-8")
    return tmp_path


def run_script(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    command = [str(tree / "scripts/test.sh")]
    return subprocess.run(
        command,
        env={**kept, **FEW_PLUGINS, **environment},
        capture_output=True,
        encoding="utf-8",
    )


def test_what_fails_only_at_first_is_counted_and_named(tree: Path) -> None:
    (tree / "test_flaky.py").write_text(FLAKY, encoding="utf-8")
    done = run_script(tree)
    assert done.returncode == 0, done.stdout
    told = "\nfailed at first, passed alone: 1\n  test_flaky.py::test_sometimes\n"
    assert done.stdout.endswith(told)


def test_names_are_compared_in_the_order_in_which_they_were_sorted(tree: Path) -> None:
    """Python's, not that of a locale which ignores case, and which this machine may not have."""
    comm = tree / "bin/comm"
    comm.parent.mkdir()
    comm.write_text(f'#!/bin/sh\n[ "$LC_ALL" = C ] && exec {shutil.which("comm")} "$@"\n')
    comm.chmod(0o755)
    (tree / "test_flaky.py").write_text(FLAKY, encoding="utf-8")
    done = run_script(tree, LC_ALL="", LANG="C.UTF-8", PATH=f"{comm.parent}:{os.environ['PATH']}")
    assert done.stdout.endswith("passed alone: 1\n  test_flaky.py::test_sometimes\n")


def test_a_folder_called_libero_is_no_simulator(tmp_path: Path) -> None:
    """In a session beside a clone tests of simulators would fail instead of being left out."""
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero" / "__init__.py").touch()
    program = "from tests.skips import HAS_SIMULATOR; print(HAS_SIMULATOR)"
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{PYTHONPATH}{os.pathsep}{tmp_path}"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert told.stdout == f"{has_simulator()}\n"


def test_what_fails_alone_too_fails(tree: Path) -> None:
    (tree / "test_flaky.py").write_text(FLAKY, encoding="utf-8")
    (tree / "test_never.py").write_text(NEVER, encoding="utf-8")
    done = run_script(tree)
    assert done.returncode == 1
    assert "failed at first, passed alone: 1\n  test_flaky.py::test_sometimes" in done.stdout
