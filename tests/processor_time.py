"""Where the suite's time goes: processor seconds by file, named where a session took a minute.

Seconds on the clock (`--durations`) tell little where several sessions share the cores.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

SHOWN = 25
WORTH_SHOWING = 60.0


def used() -> float:
    """Processor seconds of this process, and of its children that have ended.

    A child that goes on when its file's tests are over counts where it ends. What outlived its own
    parent counts nowhere.
    """
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


class ProcessorTime:
    """A plugin of pytest's. Workers of xdist tell what they used."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._last = used()

    def _charge(self, file: str) -> None:
        now = used()
        self._seconds[file] += now - self._last
        self._last = now

    def pytest_collection_finish(self) -> None:
        """What came before the first test."""
        self._charge("(collection)")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, bool, bool]:
        """A test, with the fixtures that it is the first or the last to use."""
        done = yield
        self._charge(item.nodeid.partition("::")[0])
        return done

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A worker tells."""
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output["processor_seconds"] = dict(self._seconds)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401 - xdist's
        """What a worker used is ours, too."""
        self._seconds.update(getattr(node, "workeroutput", {}).get("processor_seconds", {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:  # noqa: ANN401
        """Names the files that used most."""
        total = self._seconds.total()
        if total < WORTH_SHOWING:
            return
        terminalreporter.section(f"processor seconds: {total:.0f}")
        for file, seconds in self._seconds.most_common(SHOWN):
            terminalreporter.write_line(f"{seconds:8.1f}  {file}")
