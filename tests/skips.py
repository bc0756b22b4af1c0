"""No test is left out in silence: what was skipped is named at the end, and in CI only what a
machine may lack, or the other environment runs, may be skipped.

With CI=true or VLARL_NO_SKIPS=1 any other skip is a failure.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest

from vlarl.config.libero import has_simulator

STRICT = os.environ.get("CI") == "true" or os.environ.get("VLARL_NO_SKIPS") == "1"

HAS_TORCH = find_spec("vllm") is not None
HAS_SIMULATOR = has_simulator()

OTHER_TORCH = "runs in the torch environment (.venv)"
OTHER_SIMULATOR = "runs in the simulator's (.venv-sim)"

# `make setup` brings everything else.
MACHINES_MAY_LACK = (
    "there is no CUDA device",
    "there is a GPU here",
    "no docker command",
    "no Docker engine answers",
    "no mount namespace here",
    "mount isn't installed",
    "a small file system can't be mounted here",
    "node and npm aren't installed",
    "npm's packages ",
    "the parent's death is signalled on Linux only",
    *(f"{tool} is not installed here" for tool in ("kubectl", "docker-compose", "hadolint")),
)
OF_THE_OTHER_ENVIRONMENT = (
    (
        re.escape(OTHER_SIMULATOR),
        r"could not import '(libero|robosuite|mujoco|bddl|h5py|fast_simplification|scipy)",
    )
    if HAS_TORCH
    else (
        re.escape(OTHER_TORCH),
        "requirements/dev.txt has it",
        r"buf is in ",
        r"could not import '(vllm|torch|peft|transformers|tensorboard)",
        r"could not import '(matplotlib|jinja2|jsonschema)",
    )
)
MAY_BE_SKIPPED = re.compile(
    "|".join((*map(re.escape, MACHINES_MAY_LACK), *OF_THE_OTHER_ENVIRONMENT))
)

_skipped = pytest.StashKey[Counter[tuple[str, str]]]()


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
    if STRICT and not MAY_BE_SKIPPED.match(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, which it mustn't be where CI=true: {reason}"
        return report
    config.stash.setdefault(_skipped, Counter())[report.nodeid.partition("::")[0], reason] += 1
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
        found = session.config.stash.get(_skipped, Counter())
        output["skipped"] = [[*place, count] for place, count in found.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - xdist's
    """What a worker told is ours, too; each worker has seen the same modules."""
    found = node.config.stash.setdefault(_skipped, Counter())
    for place, reason, count in getattr(node, "workeroutput", {}).get("skipped", []):
        found[place, reason] = max(found[place, reason], count)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
    """Names what was skipped."""
    found = config.stash.get(_skipped, Counter())
    if hasattr(config, "workerinput") or not found:
        return
    terminalreporter.section(f"not run here: {sum(found.values())}")
    for (place, reason), count in sorted(found.items()):
        terminalreporter.write_line(f"{place} ({count}): {reason}")
