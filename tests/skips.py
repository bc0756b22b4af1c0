"""No test is left out in silence: skips are counted and named at the end, with their reasons.

With CI=true or VLARL_NO_SKIPS=1 a skip is a failure, unless the other environment runs the test, or
this machine lacks what it needs: each reason for which a machine may skip comes with a look at
whether it lacks that indeed. Into the file VLARL_NOT_RUN, where that is set, a session writes what
no environment of this machine has run: reason, tab, test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vlarl.config.libero import has_simulator

STRICT = os.environ.get("CI") == "true" or os.environ.get("VLARL_NO_SKIPS") == "1"

HAS_TORCH = find_spec("vllm") is not None
HAS_SIMULATOR = has_simulator()

OTHER_TORCH = "runs in the torch environment (.venv)"
OTHER_SIMULATOR = "runs in the simulator's (.venv-sim)"


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _installed(*programs: str) -> bool:
    beside = Path(sys.executable).parent
    return all(shutil.which(name) or (beside / name).exists() for name in programs)


def _succeeds(*command: str) -> bool:
    return _installed(command[0]) and not subprocess.run(command, capture_output=True).returncode


def _mounts() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mounted = _succeeds("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
        return mounted and _succeeds("umount", folder)


# `make setup` brings everything else. Each with whether this machine has it all the same.
MACHINES_MAY_LACK: dict[str, Callable[[], bool]] = {
    "there is no CUDA device": _has_gpu,
    "there is a GPU here": lambda: not _has_gpu(),
    "no docker command": lambda: _installed("docker"),
    "no Docker engine answers": lambda: _succeeds("docker", "info"),
    "no mount namespace here": lambda: _succeeds(
        *("unshare", "--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts")
    ),
    "mount isn't installed": lambda: _installed("mount"),
    "a small file system can't be mounted here": _mounts,
    "node and npm aren't installed": lambda: _installed("node", "npm"),
    "npm's packages ": lambda: False,  # They come from elsewhere, or don't.
    "the parent's death is signalled on Linux only": lambda: sys.platform == "linux",
    **{
        f"{tool} is not installed here": lambda tool=tool: _installed(tool)  # type: ignore[misc]
        for tool in ("kubectl", "docker-compose", "hadolint")
    },
}
_MODULES = (
    "libero|robosuite|mujoco|bddl|h5py|fast_simplification|scipy"
    if HAS_TORCH
    else "vllm|torch|peft|transformers|tensorboard|matplotlib|jinja2|jsonschema"
)
_NO_MODULE = re.compile(rf"could not import '({_MODULES})\b")
OF_THE_OTHER_ENVIRONMENT = (
    (OTHER_SIMULATOR,)
    if HAS_TORCH
    else (OTHER_TORCH, "requirements/dev.txt has it", "buf is in the torch environment (.venv)")
)

_skipped = pytest.StashKey[dict[str, str]]()


def _for_the_other(reason: str) -> bool:
    """Whether the other environment runs it."""
    if found := _NO_MODULE.match(reason):
        return find_spec(found[1]) is None
    return reason.startswith(OF_THE_OTHER_ENVIRONMENT)


def objection(reason: str) -> str | None:
    """What speaks against a skip where all that can be run has to be; none: nothing."""
    if _for_the_other(reason):
        return None
    for known, has_it in MACHINES_MAY_LACK.items():
        if reason.startswith(known):
            return "this machine can run it" if has_it() else None
    return "no machine may lack that"


def check_environment() -> None:
    """An environment that lacks what it is for would leave out whole folders.

    Raises:
        pytest.UsageError: it has neither vLLM nor LIBERO.
    """
    if not HAS_TORCH and not HAS_SIMULATOR:
        raise pytest.UsageError(
            "this environment has neither vLLM nor LIBERO, so most tests would be left out: run "
            "them with .venv or .venv-sim, as `make setup` makes them"
        )


def reason_of(report: Any) -> str:  # noqa: ANN401 - of a test or of a module
    """Why it was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ")


def _judged(config: pytest.Config, report: Any) -> Any:  # noqa: ANN401
    """The report, noted where it is a skip's; a failure's where it mustn't be one."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = reason_of(report)
    if STRICT and (against := objection(reason)):
        report.outcome = "failed"
        report.longrepr = f"skipped, which it mustn't be where CI=true: {reason}; {against}"
        return report
    config.stash.setdefault(_skipped, {})[report.nodeid] = reason
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Judges a test's skip."""
    return _judged(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Judges a module's skip."""
    return _judged(collector.config, (yield))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells what it has skipped."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["skipped"] = session.config.stash.get(_skipped, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - xdist's
    """What a worker told is ours, too; each worker has seen the same modules."""
    told = getattr(node, "workeroutput", {}).get("skipped", {})
    node.config.stash.setdefault(_skipped, {}).update(told)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
    """Names what was skipped."""
    found = config.stash.get(_skipped, {})
    if hasattr(config, "workerinput") or not found:
        return
    terminalreporter.section(f"not run here: {len(found)}")
    for reason in sorted(set(found.values())):
        tests = sorted(test for test, why in found.items() if why == reason)
        terminalreporter.write_line(f"{reason}: {len(tests)}")
        for test in tests:
            terminalreporter.write_line(f"  {test}")
    if file := os.environ.get("VLARL_NOT_RUN"):
        lines = [f"{why}\t{test}\n" for test, why in found.items() if not _for_the_other(why)]
        with Path(file).open("a", encoding="utf-8") as opened:
            opened.writelines(lines)
