"""The tasks that can be asked for: LIBERO's suites, LIBERO-PRO's perturbed variants of them, and
folders of BDDL files of our own.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.env.bddl_check import check_bddl
from services.env.bddl_reader import instruction
from vlarl.config import ConfigError
from vlarl.libero import LIBERO_SUITES

_SPEAKING_BDDL = ("_lan", "_task")
"""Variants whose instruction differs from their files' names, which are the suite's."""

_MAX_NAME = 100
"""Characters of an unknown suite's name that are looked at."""

OWN_STEP_LIMIT = 300
"""Control steps of an episode in a suite of our own whose suite.toml names none."""

SHIPPED_SUITES = {name: Path(__file__).parent / "bddl" / name for name in ("reach", "approach")}
"""Suites of our own that come with the package."""


class UnknownTaskError(ValueError):
    """A suite, task or initial state that doesn't exist; the message names those that do."""


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite.

    Attributes:
        suite: Name of the suite.
        index: Position in the suite, from 0.
        name: The BDDL file's name without its ending, as LIBERO calls the task.
        instruction: The task in words, as the policy is told.
        bddl_file: The scene, its regions and its goal.
        states_file: Official initial states (`states` [n, 1 + nq + nv] float64); none: none exist.
        max_control_steps: Control steps after which an episode is cut.
    """

    suite: str
    index: int
    name: str
    instruction: str
    bddl_file: Path
    states_file: Path | None
    max_control_steps: int

    @cached_property
    def init_states(self) -> int:
        """Number of official initial states."""
        if self.states_file is None:
            return 0
        with np.load(self.states_file, allow_pickle=False) as archive:
            return len(archive["states"])

    def init_state(self, index: int) -> npt.NDArray[np.float64]:
        """One official initial state: time, joint positions, joint velocities, flattened.

        Raises:
            UnknownTaskError: there is none of this number.
        """
        if self.states_file is None or not 0 <= index < self.init_states:
            raise UnknownTaskError(
                f"{self.suite} task {self.index} has {self.init_states} official initial states, "
                f"so there is no number {index}"
            )
        with np.load(self.states_file, allow_pickle=False) as archive:
            return np.asarray(archive["states"][index], dtype=np.float64)


class TaskCatalog:
    """Every task of every suite.

    Args:
        own_suites: Folders of BDDL files by the name of the suite that they make. The folder's
            order is that of the file names. A file's initial states stand beside it
            (`NAME.init.npz`); `suite.toml` may give `max_control_steps`.

    Raises:
        ConfigError: a folder without BDDL files, a name that is taken, or a broken file, whose
            line the message names.
    """

    def __init__(self, own_suites: Mapping[str, Path] | None = None) -> None:
        folders = {**SHIPPED_SUITES, **(own_suites or {})}
        if taken := sorted(folders.keys() & LIBERO_SUITES.keys()):
            raise ConfigError(f"suite name {taken[0]!r} is LIBERO's own; choose another")
        self._suites: dict[str, Sequence[SuiteTask]] = {
            suite: _libero_tasks(suite, limit) for suite, limit in LIBERO_SUITES.items()
        }
        for suite, folder in folders.items():
            self._suites[suite] = _own_tasks(suite, folder)

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
            # A client may send megabytes, which difflib would chew for minutes.
            suite = suite[:_MAX_NAME]
            near = difflib.get_close_matches(suite, self._suites, n=1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise UnknownTaskError(
                f"unknown suite {suite!r}; {hint} are {', '.join(sorted(self._suites))}"
            )
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


def _libero_tasks(suite: str, max_control_steps: int) -> list[SuiteTask]:
    from services.env import headless

    headless.prepare()
    from libero.libero import benchmark, get_libero_path

    scenes, states = Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))
    tasks = []
    for index, task in enumerate(benchmark.task_maps[suite].values()):
        bddl_file = scenes / task.problem_folder / task.bddl_file
        # From the file's name, as the published evaluations have it.
        speaking = suite.endswith(_SPEAKING_BDDL)
        tasks.append(
            SuiteTask(
                suite=suite,
                index=index,
                name=task.name,
                instruction=instruction(bddl_file) if speaking else task.language,
                bddl_file=bddl_file,
                states_file=states / task.problem_folder / f"{task.init_states_file}.npz",
                max_control_steps=max_control_steps,
            )
        )
    return tasks


def _own_tasks(suite: str, folder: Path) -> list[SuiteTask]:
    try:
        files = bddl_files(folder.resolve())
    except OSError as error:
        raise ConfigError(f"suite {suite!r}: {folder}: {error.strerror}") from error
    if not files:
        raise ConfigError(f"suite {suite!r}: {folder} holds no .bddl file")
    limit = OWN_STEP_LIMIT
    settings = folder / "suite.toml"
    if settings.is_file():
        try:
            values = tomllib.loads(settings.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{settings}: not TOML: {error}") from error
        limit = values.pop("max_control_steps", OWN_STEP_LIMIT)
        if values or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"{settings}: max_control_steps (a positive integer) is all it holds")
    return [
        SuiteTask(
            suite=suite,
            index=index,
            name=file.stem,
            instruction=check_bddl(file),
            bddl_file=file,
            states_file=states if (states := file.with_suffix(".init.npz")).is_file() else None,
            max_control_steps=limit,
        )
        for index, file in enumerate(files)
    ]


def bddl_files(folder: Path) -> list[Path]:
    """The scene files of a folder, in the order of their names.

    Raises:
        OSError: there is no such folder.
    """
    # macOS leaves a file ._NAME of its own beside each that it copies.
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() == ".bddl" and not file.name.startswith(".") and file.is_file()
    )
