"""What isn't run is named; in CI a skip may not hide anything. What fails once has failed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.roots import PYTHONPATH
from tests.skips import (
    HAS_TORCH,
    MACHINES_MAY_LACK,
    OTHER_SIMULATOR,
    OTHER_TORCH,
    objection,
)
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
FINE = "def test_fine(): ...\n"
OTHER = OTHER_SIMULATOR if HAS_TORCH else OTHER_TORCH
FEW_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist.plugin"}


STRICTLY = ("CI", "VLARL_NO_SKIPS", "VLARL_NOT_RUN")
"""What a session that runs this file may have been told, too."""


def without_ours() -> dict[str, str]:
    """The environment without what this session was started with."""
    return {k: v for k, v in os.environ.items() if k not in STRICTLY and k[:6] != "PYTEST"}


def run_tests(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A session of its own, without what this one was started with."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "conftest.py").write_text(HOOKS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env={**without_ours(), **FEW_PLUGINS, "PYTHONPATH": PYTHONPATH, **environment},
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
    assert "there is no CUDA device: 1\n  test_gpu.py::test_gpu\n" in done.stdout
    assert "promtool is not installed here: 1\n  test_tool.py::test_tool\n" in done.stdout
    assert "could not import 'grafana_of_nobody'" in done.stdout
    assert ": 1\n  test_module.py\n" in done.stdout


@pytest.mark.parametrize("name", ["CI", "VLARL_NO_SKIPS"])
def test_in_ci_only_what_a_machine_may_lack_is_skipped(skipping: Path, name: str) -> None:
    values = {"CI": "true", "VLARL_NO_SKIPS": "1"}
    options = ("-n", "2") if name == "CI" else ("--continue-on-collection-errors",)
    done = run_tests(skipping, *options, **{name: values[name]})
    assert done.returncode == 1, done.stdout
    for reason in ("could not import 'grafana_of_nobody'", "promtool is not installed here"):
        assert f"skipped, which it mustn't be where CI=true: {reason}" in done.stdout
    assert "no machine may lack that" in done.stdout
    named = "not run here: 1\nthere is no CUDA device: 1\n  test_gpu.py::test_gpu\n"
    assert named in re.sub(r"=+ | =+", "", done.stdout)


def test_in_ci_nothing_is_skipped_that_its_machine_can_run(tmp_path: Path) -> None:
    skipping = "import pytest\n\ndef test_it():\n    pytest.skip('no docker command')\n"
    (tmp_path / "test_skipping.py").write_text(skipping, encoding="utf-8")
    assert run_tests(tmp_path, VLARL_NO_SKIPS="1", PATH=os.devnull).returncode == 0
    tool = tmp_path / "bin/docker"
    tool.parent.mkdir()
    tool.touch(mode=0o755)
    done = run_tests(tmp_path, VLARL_NO_SKIPS="1", PATH=str(tool.parent))
    assert done.returncode == 1, done.stdout
    assert "no docker command; this machine can run it" in done.stdout
    assert run_tests(tmp_path, PATH=str(tool.parent)).returncode == 0, "it is no failure elsewhere"


@pytest.mark.parametrize("reason", MACHINES_MAY_LACK)
def test_a_machine_that_has_what_a_test_needs_may_not_skip_it(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_it, against in ((True, "this machine can run it"), (False, None)):
        monkeypatch.setitem(MACHINES_MAY_LACK, reason, lambda has_it=has_it: has_it)
        assert objection(f"{reason} (and more)") == against


def test_what_the_other_environment_runs_is_left_to_it() -> None:
    mine, its = ("vllm", "libero") if HAS_TORCH else ("libero", "vllm")
    assert objection(f"could not import '{its}': No module named '{its}'") is None
    assert objection(f"could not import '{mine}': No module named '{mine}'") is not None
    assert objection(OTHER_SIMULATOR if HAS_TORCH else OTHER_TORCH) is None
    assert objection(OTHER_TORCH if HAS_TORCH else OTHER_SIMULATOR) is not None


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
    command = [str(tree / "scripts/test.sh")]
    return subprocess.run(
        command,
        env={**without_ours(), **FEW_PLUGINS, **environment},
        capture_output=True,
        encoding="utf-8",
    )


FLAKY = """
from pathlib import Path

def test_sometimes():
    marker = Path(__file__).with_name("seen")
    seen = marker.exists()
    marker.touch()
    assert seen
"""


def test_what_fails_once_has_failed(tree: Path) -> None:
    """Alone and a second time it would pass: that is a fault, to be mended."""
    (tree / "test_flaky.py").write_text(FLAKY, encoding="utf-8")
    done = run_script(tree)
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_what_no_environment_has_run_is_named_last(tree: Path) -> None:
    (tree / "conftest.py").write_text(HOOKS, encoding="utf-8")
    for name, content in (("tool", TOOL), ("gpu", GPU)):
        (tree / f"test_{name}.py").write_text(content, encoding="utf-8")
    elsewhere = f"import pytest\n\ndef test_it():\n    pytest.skip({OTHER!r})\n"
    (tree / "test_elsewhere.py").write_text(elsewhere, encoding="utf-8")
    done = run_script(tree, PYTHONPATH=PYTHONPATH)
    assert done.returncode == 0, done.stdout
    assert "not run here: 3" in done.stdout
    assert done.stdout.endswith(
        "\nnot run on this machine: 2\n"
        "  test_tool.py::test_tool: promtool is not installed here\n"
        "  test_gpu.py::test_gpu: there is no CUDA device\n"
    )


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
