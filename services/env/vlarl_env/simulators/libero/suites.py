"""Suites of tasks: LIBERO's, LIBERO-PRO's perturbed variants of them, and folders of BDDL files of
our own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlarl.config import ConfigError
from vlarl.config.files import read_toml
from vlarl.config.suites import SHIPPED_NAMES, bddl_files
from vlarl.weights.whereabouts import pointer_sentence
from vlarl_env.errors import UnknownTaskError
from vlarl_env.simulators.libero.bddl_check import check_bddl
from vlarl_env.simulators.libero.bddl_reader import instruction

_SPEAKING_BDDL = ("_lan", "_task")
"""Variants whose instruction differs from their files' names, which are the suite's."""

_DRAWS_STATES = "python -m vlarl_env.simulators.libero.init_states"

OWN_STEP_LIMIT = 300
"""Control steps of an episode in a suite of our own whose suite.toml names none."""

SHIPPED_SUITES = {name: Path(__file__).parent / "bddl" / name for name in SHIPPED_NAMES}
"""Folders of the suites of our own that come with the package."""


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
        """Number of official initial states.

        Raises:
            ConfigError: their file can't be used.
        """
        return 0 if self.states_file is None else len(_read_states(self.states_file))

    def init_state(self, index: int, length: int | None = None) -> npt.NDArray[np.float64]:
        """One official initial state: time, joint positions, joint velocities, flattened.

        Args:
            index: its number.
            length: how many values a state of the scene has; None: nobody has built it yet.

        Raises:
            UnknownTaskError: there is none of this number, or they are another scene's.
            ConfigError: their file can't be used.
        """
        if self.states_file is None or not 0 <= index < self.init_states:
            raise UnknownTaskError(
                f"{self.suite} task {self.index} has {self.init_states} official initial states, "
                f"so there is no number {index}"
            )
        states = _read_states(self.states_file)
        if length not in (None, states.shape[1]):
            raise UnknownTaskError(
                f"{self.states_file}: its states have {states.shape[1]} values, those of the scene "
                f"{self.bddl_file} have {length}: it was edited after they were drawn; draw them "
                f"again with `{_DRAWS_STATES} {self.states_file.parent}`"
            )
        state: npt.NDArray[np.float64] = states[index]
        return state


def libero_tasks(suite: str, max_control_steps: int) -> list[SuiteTask]:
    """The tasks of a suite of LIBERO's."""
    from vlarl_env.simulators.libero import headless

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


def own_tasks(suite: str, folder: Path) -> list[SuiteTask]:
    """The tasks that a folder of BDDL files makes.

    Raises:
        ConfigError: it can't be used; the message names the file.
    """
    try:
        files = bddl_files(folder.resolve())
    except OSError as error:
        raise ConfigError(f"suite {suite!r}: {folder}: {error.strerror}") from error
    if not files:
        raise ConfigError(f"suite {suite!r}: {folder} holds no .bddl file")
    limit = _step_limit(folder / "suite.toml")
    tasks = [
        SuiteTask(
            suite=suite,
            index=index,
            name=file.stem,
            instruction=check_bddl(file),
            bddl_file=file,
            states_file=states if os.path.lexists(states := _states_beside(file)) else None,
            max_control_steps=limit,
        )
        for index, file in enumerate(files)
    ]
    for task in tasks:
        _ = task.init_states  # what is wrong with them is said now
    return tasks


def _step_limit(settings: Path) -> int:
    if not os.path.lexists(settings):
        return OWN_STEP_LIMIT
    values = read_toml(settings)
    limit = values.pop("max_control_steps", OWN_STEP_LIMIT)
    if values or not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ConfigError(f"{settings}: max_control_steps (a positive integer) is all it holds")
    return limit


def _states_beside(bddl_file: Path) -> Path:
    return bddl_file.with_suffix(".init.npz")


def _read_states(file: Path) -> npt.NDArray[np.float64]:
    """All official initial states of a task: [n, 1 + nq + nv].

    Raises:
        ConfigError: the file can't be read, or holds something else.
    """
    if pointer := pointer_sentence(file):
        raise ConfigError(pointer)
    try:
        with np.load(file, allow_pickle=False) as archive:
            states = np.asarray(archive["states"], dtype=np.float64)
        if states.ndim != 2 or not np.isfinite(states).all():
            raise ValueError(f"`states` of shape {list(states.shape)} aren't finite rows")
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror or error})") from error
    except Exception as error:  # whatever zipfile, zlib and numpy say of other files
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"{file}: no initial states as `{_DRAWS_STATES} {file.parent}` draws them ({cause}); "
            "draw them again, or remove the file"
        ) from error
    return states
