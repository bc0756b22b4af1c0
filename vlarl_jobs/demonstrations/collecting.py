"""Collects the expert's demonstrations of a suite: one HDF5 file a task."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vlarl.errors import FatalError
from vlarl_env.simulators.libero.bddl_reader import read_text
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_jobs.demonstrations.console import TaskBars
from vlarl_jobs.demonstrations.episode_files import load_episode
from vlarl_jobs.demonstrations.hdf5 import write_demos
from vlarl_jobs.demonstrations.messages import Answer, PlayOrder, Settings
from vlarl_jobs.demonstrations.worker_processes import run_crew

PARTS = ".parts"
"""Folder of finished episodes within the output folder."""

LAST_SEED = 2**47
"""Placement seeds lie below, and so below those of official initial states."""

_PROBLEM = re.compile(r"\(problem\s+(\w+)\)", re.IGNORECASE)
_TRIES_BEFORE_DOUBT = 40
_LEAST_SUCCESS = 0.05


class CollectionError(FatalError):
    """The expert can't collect what was asked for."""


@dataclass(frozen=True)
class CollectionRequest:
    """What is to be collected."""

    episodes: int
    """Of each task."""
    seed: int
    """Placements and noise follow from it, the task and the episode's number."""
    keep_failures: bool = False
    """Whether episodes count that missed the goal."""


def seeds_of(wish_seed: int, task: SuiteTask, number: int) -> tuple[int, int]:
    """The placement seed and the noise seed of one try."""
    name = int.from_bytes(hashlib.sha256(f"{task.suite}/{task.name}".encode()).digest()[:4])
    placement, noise = np.random.SeedSequence([wish_seed, name, number]).generate_state(
        2, np.uint64
    )
    return int(placement) % LAST_SEED, int(noise) % LAST_SEED


@dataclass
class TaskProgress:
    """The tries of one task, in the order of their numbers.

    What is collected are the first successful ones, whoever finishes first, so that the result
    depends on the seed alone.
    """

    task: SuiteTask
    wish: CollectionRequest
    folder: Path
    """Where this task's parts lie: N.npz is a kept try, N.missed one that failed."""
    running: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    missed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Finds what an earlier run has finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kept = {int(part.stem) for part in self.folder.glob("*.npz")}
        self.missed = {int(part.stem) for part in self.folder.glob("*.missed")}

    @property
    def done(self) -> bool:
        """Whether nothing of this task is left to do or in work."""
        return not self.running and not self._wants_more()

    def next_number(self) -> int | None:
        """The next try's number; none: enough are kept or in work."""
        if not self._wants_more():
            return None
        taken = self.kept | self.missed | self.running
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        self.running.add(number)
        return number

    def _wants_more(self) -> bool:
        if len(self.kept) + len(self.running) < self.wish.episodes:
            return True
        # A run that was killed may have left out a try before the last one kept.
        taken = self.kept | self.missed | self.running
        wanted = sorted(self.kept)[: self.wish.episodes]
        return bool(wanted) and any(number not in taken for number in range(wanted[-1]))

    def finish(self, number: int, answer: Answer) -> None:
        """Counts a try.

        Raises:
            CollectionError: hardly any succeeds, or none can.
        """
        if answer.hopeless:
            raise CollectionError(
                f"{self.task.suite} task {self.task.index} ({self.task.name}): {answer.error}; "
                "leave the task out"
            )
        self.running.discard(number)
        if answer.error is None and (answer.success or self.wish.keep_failures):
            self.kept.add(number)
            return
        self.missed.add(number)
        (self.folder / f"{number:06d}.missed").touch()
        tries = len(self.kept) + len(self.missed)
        if tries >= _TRIES_BEFORE_DOUBT and len(self.kept) < _LEAST_SUCCESS * tries:
            raise CollectionError(
                f"{self.task.suite} task {self.task.index} ({self.task.name}): the expert reached "
                f"the goal in {len(self.kept)} of {tries} tries; leave the task out or lower "
                "--noise"
            )

    def part(self, number: int) -> Path:
        """Where a try is kept."""
        return self.folder / f"{number:06d}.npz"


async def collect(
    tasks: Sequence[SuiteTask],
    wish: CollectionRequest,
    settings: Settings,
    out: Path,
    processes: int,
) -> list[Path]:
    """Plays until every task has its episodes, and writes their files.

    May be killed at any time: called again with the same arguments, it goes on.

    Raises:
        CollectionError: the expert hardly ever reaches a goal, or `out` holds another collection.
        WorkerDiedError: a worker ended on its own.
    """
    out = out.resolve()
    # Nothing is rendered here.
    played = settings.model_dump(mode="json", exclude={"further_cameras"})
    _claim(out / PARTS, {**played, **asdict(wish)})
    open_tasks = {
        task.index: TaskProgress(task, wish, out / PARTS / f"{task.suite}-{task.index:02d}")
        for task in tasks
        if not file_of(out, task).exists()
    }
    with TaskBars([(label(task), wish.episodes) for task in tasks]) as bars:

        def show(progress: TaskProgress) -> None:
            bars.show(label(progress.task), min(len(progress.kept), wish.episodes))
            if progress.done:
                _write(out, progress, settings)

        def on_answer(order: PlayOrder, answer: Answer) -> None:
            open_tasks[order.index].finish(order.number, answer)
            show(open_tasks[order.index])

        for task in tasks:
            bars.show(label(task), wish.episodes)
        for progress in open_tasks.values():
            show(progress)
        await run_crew(settings, processes, _orders(open_tasks.values()), on_answer)
    return [file_of(out, task) for task in tasks]


def _orders(open_tasks: Collection[TaskProgress]) -> Callable[[], PlayOrder | None]:
    def next_order() -> PlayOrder | None:
        for progress in open_tasks:
            if (number := progress.next_number()) is not None:
                return _order(progress, number)
        return None

    return next_order


def label(task: SuiteTask) -> str:
    """A task as the progress display calls it."""
    return f"{task.suite} {task.index}"


def file_of(out: Path, task: SuiteTask) -> Path:
    """A task's file, named as LIBERO names its own."""
    return out / f"{task.name}_demo.hdf5"


def _order(progress: TaskProgress, number: int) -> PlayOrder:
    placement, noise = seeds_of(progress.wish.seed, progress.task, number)
    return PlayOrder(
        suite=progress.task.suite,
        index=progress.task.index,
        number=number,
        placement_seed=placement,
        noise_seed=noise,
        part=progress.part(number),
        keep_failures=progress.wish.keep_failures,
    )


def _claim(folder: Path, settings: dict[str, object]) -> None:
    """Notes how a folder's episodes are made, or refuses to mix them with others."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "settings.json"
    if not note.exists():
        note.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    elif (there := json.loads(note.read_text(encoding="utf-8"))) != settings:
        changed = ", ".join(key for key in settings if there.get(key) != settings[key])
        raise CollectionError(
            f"{folder.parent} holds episodes collected with another {changed}; choose another --out"
        )


def _write(out: Path, progress: TaskProgress, settings: Settings) -> None:
    task, wish = progress.task, progress.wish
    numbers = sorted(progress.kept)[: wish.episodes]
    bddl = read_text(task.bddl_file)
    problem = found[1] if (found := _PROBLEM.search(bddl)) else ""
    bddl_file = f"{task.suite}/{task.bddl_file.name}"
    info = {
        "problem_name": problem.lower(),
        "domain_name": "robosuite",
        "language_instruction": task.instruction,
    }
    environment = {
        "type": 1,  # robomimic's number for robosuite
        "env_name": problem,
        "problem_name": problem.lower(),
        "bddl_file": bddl_file,
        "env_kwargs": {"robots": ["Panda"], "control_freq": 20},
    }
    attributes = {
        "problem_info": json.dumps(info),
        "bddl_file_name": bddl_file,
        "bddl_file_content": bddl,
        "env_name": problem,
        "env_args": json.dumps(environment),
        "macros_image_convention": "opengl",
        "suite": task.suite,
        "task_index": task.index,
        "action_repeat": settings.action_repeat,
        "noise": settings.noise,
        "pace": settings.pace,
        "seed": wish.seed,
        "profile": settings.profile,
    }
    episodes = [load_episode(progress.part(number)) for number in numbers]
    write_demos(file_of(out, task), episodes, attributes)
    shutil.rmtree(progress.folder)
