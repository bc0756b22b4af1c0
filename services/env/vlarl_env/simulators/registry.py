"""The tasks that can be asked for, of all suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlarl.config import ConfigError
from vlarl.config.libero import LIBERO_SUITES
from vlarl.config.suites import unknown_suite
from vlarl_env.errors import UnknownTaskError
from vlarl_env.simulators.libero.suites import SHIPPED_SUITES, SuiteTask, libero_tasks, own_tasks


class TaskCatalog:
    """Every task of every suite.

    Args:
        own_suites: Folders of BDDL files by the name of the suite that they make. The folder's
            order is that of the file names. A file's initial states stand beside it
            (`NAME.init.npz`); `suite.toml` may give `max_control_steps`.

    Raises:
        ConfigError: a folder without BDDL files, a name that is taken, or a broken file, which the
            message names, with the line.
    """

    def __init__(self, own_suites: Mapping[str, Path] | None = None) -> None:
        folders = {**SHIPPED_SUITES, **(own_suites or {})}
        if taken := sorted(folders.keys() & LIBERO_SUITES.keys()):
            raise ConfigError(f"suite name {taken[0]!r} is LIBERO's own; choose another")
        self._suites: dict[str, Sequence[SuiteTask]] = {
            suite: libero_tasks(suite, limit) for suite, limit in LIBERO_SUITES.items()
        }
        for suite, folder in folders.items():
            self._suites[suite] = own_tasks(suite, folder)

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites."""
        return tuple(self._suites)

    def tasks(self, suite: str) -> Sequence[SuiteTask]:
        """The tasks of a suite, in order.

        Raises:
            UnknownTaskError: no such suite.
        """
        if suite not in self._suites:
            raise UnknownTaskError(unknown_suite(suite, self._suites))
        return self._suites[suite]

    def find(self, suite: str, index: int) -> SuiteTask:
        """One task.

        Raises:
            UnknownTaskError: no such suite, or no such task in it.
        """
        tasks = self.tasks(suite)
        if not 0 <= index < len(tasks):
            raise UnknownTaskError(
                f"suite {suite!r} has tasks 0 to {len(tasks) - 1}, so there is no number {index}"
            )
        return tasks[index]
