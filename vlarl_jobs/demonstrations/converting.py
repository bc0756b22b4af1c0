"""Makes files of demonstrations into a dataset: frames are rendered from the recorded states."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlarl.config.libero import base_suite
from vlarl.data.dataset import (
    Capture,
    DatasetError,
    Frames,
    Motion,
    TaskSamples,
    abandon_dataset,
    describe_dataset,
    task_file,
    write_task,
)
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_jobs.demonstrations.console import TaskBars
from vlarl_jobs.demonstrations.episode_files import RenderedEpisode, load_rendered
from vlarl_jobs.demonstrations.examining import Examined, Terms, examine
from vlarl_jobs.demonstrations.hdf5 import DemoFileError, Header, demo_files, read_header
from vlarl_jobs.demonstrations.messages import Answer, RenderOrder, SceneError, Settings
from vlarl_jobs.demonstrations.worker_processes import run_crew

PARTS = ".parts"
"""Folder of rendered episodes within the dataset's folder."""

_RENDERED = "with proprioception"
"""What rendered episodes have that those of earlier versions lack."""

ORIGINS = "origins.json"
"""Within the dataset's folder: of which file each task was made, how that was read, what was left
out of it."""


@dataclass(frozen=True)
class Source:
    """A file of demonstrations and its task."""

    file: Path
    examined: Examined
    task: SuiteTask

    @property
    def demos(self) -> tuple[str, ...]:
        """Those that can be used, as far as can be told without a scene."""
        return self.examined.demos

    def words(self) -> str:
        """What was recognised, for people."""
        of, left = len(self.examined.header.demos), len(self.examined.left_out)
        few = f"demonstrations: {of}" + (f", left out: {left}" if left else "")
        told = f"{self.examined.conventions.words()} ({self.examined.told_by})"
        if not self.examined.fixtures_known:
            told += "; fixtures as the benchmark's resets draw them, since the file doesn't say"
        return f"{self.file.name}: {self.task.suite} task {self.task.index}, {few}; {told}"


def find_sources(
    path: Path, catalog: TaskCatalog, terms: Terms, task: SuiteTask | None = None
) -> list[Source]:
    """The files at a path, which task each belongs to, and which of its demonstrations can be used.

    Args:
        path: A file or a folder.
        catalog: All tasks.
        terms: How files are read where they don't say.
        task: The task of the only file; none: as the file says.

    Raises:
        DemoFileError: a file can't be used, or is of a task that nobody knows.
    """
    files, sources = demo_files(path), list[Source]()
    if task is not None and len(files) > 1:
        raise DemoFileError(f"--task is for one file, and {path} holds {len(files)}")
    faults: dict[Path, str] = {}
    for file in files:
        try:
            header = read_header(file)
            its_task = task or task_of(file, header, catalog)
            source = Source(
                file.resolve(), _in_scene(file, examine(file, terms), its_task), its_task
            )
        except DemoFileError as error:
            faults[file] = str(error)
            continue
        if twin := next((one for one in sources if one.task == its_task), None):
            raise DemoFileError(
                f"{file} and {twin.file} are of the same task, {its_task.suite} "
                f"{its_task.index}: convert them into two datasets"
            )
        sources.append(source)
    if faults:
        raise DemoFileError(_together(faults))
    return sources


def _together(faults: Mapping[Path, str]) -> str:
    """One sentence for all files that can't be used."""
    (first, *others), names = faults.values(), [file.name for file in faults]
    return f"{first}; nor can {' and '.join(names[1:])} be used" if others else first


def task_of(file: Path, header: Header, catalog: TaskCatalog) -> SuiteTask:
    """The task that a file is of.

    The suites that perturb another have tasks of the same names; a file is of one of those only
    where it says so, or the folder that it lies in.

    Raises:
        DemoFileError: no suite has such a task, or several have.
    """
    named = [
        task
        for suite in catalog.suites
        for task in catalog.tasks(suite)
        if task.name == header.task
    ]
    for suite in (header.suite, file.resolve().parent.name.removesuffix("_no_noops")):
        if of_suite := [task for task in named if task.suite == suite]:
            return of_suite[0]
    plain = [task for task in named if base_suite(task.suite) == task.suite] or named
    if not named:
        recorded = f" (recorded in {header.environment})" if header.environment else ""
        raise DemoFileError(
            f"{file}{recorded}: {header.named_by} names the task {header.task!r}, which no suite "
            "has; name it with --task SUITE/NUMBER, or the folder of its BDDL file with --bddl"
        )
    if len(plain) > 1:
        found = " and ".join(f"{task.suite}/{task.index}" for task in plain)
        raise DemoFileError(f"{file} may be of {found}: say which with --task SUITE/NUMBER")
    return plain[0]


def _in_scene(file: Path, examined: Examined, task: SuiteTask) -> Examined:
    """Leaves out demonstrations of another scene, where an official state tells its size; otherwise
    the scene tells, when it is built.

    Raises:
        DemoFileError: none is left.
    """
    if not task.init_states:
        return examined
    size = len(task.init_state(0))
    return examined.without(
        file,
        {
            demo: f"{demo} has states of {found} numbers, the scene of {task.suite} task "
            f"{task.index} has {size}: it is of another task, which --task names"
            for demo, found in examined.state_sizes.items()
            if found != size
        },
    )


def common_repeat(sources: Sequence[Source], wanted: int | None) -> int:
    """The action repeat of the dataset.

    Args:
        sources: What it is made from.
        wanted: What was asked for; none: the recordings' own.

    Raises:
        DemoFileError: recordings whose actions were held can't be had at another repeat.
    """
    recorded = {source.examined.header.action_repeat: source for source in sources}
    repeat = wanted or max(recorded)
    for found, source in recorded.items():
        if found not in (1, repeat):
            raise DemoFileError(
                f"{source.file} holds each action for {found} control steps, so that no dataset "
                f"with --action-repeat {repeat} can be made from it"
            )
    return repeat


@dataclass(frozen=True)
class Converted:
    """What became of the files."""

    written: tuple[Path, ...]
    """The dataset's files, those that were there before among them."""
    left_out: Mapping[Path, Mapping[str, str]]
    """By file and name, why demonstrations can't be used; found in the scene."""


async def convert(
    sources: Sequence[Source],
    settings: Settings,
    dataset: Path,
    processes: int,
    *,
    keep_failures: bool = False,
) -> Converted:
    """Renders what the dataset lacks yet. May be killed at any time: called again, it goes on.

    Raises:
        DemoFileError: a file holds no demonstration that can be used; the others are converted.
        DatasetError: the dataset's frames were taken in another way, or a task of it is there that
            was made from another file, or read otherwise.
        SceneError: the scene has no such camera.
        WorkerDiedError: a worker ended on its own.
    """
    dataset, existed = dataset.resolve(), dataset.exists()
    describe_dataset(dataset, _capture(settings))
    with TaskBars([(_label(s), len(s.demos)) for s in sources]) as bars:

        def show(source: Source, done: int) -> None:
            bars.show(_label(source), done)

        job = _Job(dataset, settings, sources, keep_failures, show)
        try:
            await run_crew(settings, processes, job.next_order, job.finish)
        finally:
            if not job.has_result():
                # A worker that was killed may have left a part half written.
                shutil.rmtree(dataset / PARTS, ignore_errors=True)
                abandon_dataset(dataset, keep_folder=existed)
    shutil.rmtree(dataset / PARTS, ignore_errors=True)
    if hopeless := job.hopeless():
        raise DemoFileError(_together(hopeless))
    return Converted(
        tuple(_file_of(dataset, source.task) for source in sources),
        {file: found for file, found in job.left_out.items() if found},
    )


class _Job:
    """What is to be rendered, and what has become of it."""

    def __init__(
        self,
        dataset: Path,
        settings: Settings,
        sources: Sequence[Source],
        keep_failures: bool,
        show: Callable[[Source, int], None],
    ) -> None:
        """show: called whenever more of a source is done, with how much is."""
        self.left_out: dict[Path, dict[str, str]] = {source.file: {} for source in sources}
        self._dataset = dataset
        self._capture = _capture(settings)
        self._must_succeed = not keep_failures
        self._sources = {source.file: source for source in sources}
        self._open = {
            source.file: 0 for source in sources if not _file_of(dataset, source.task).exists()
        }
        self._show = show
        self._check_origins()
        self._orders = self._all_orders()
        for source in sources:
            show(source, self.done(source))

    def done(self, source: Source) -> int:
        """How many of a source's demonstrations are finished."""
        return self._open.get(source.file, len(source.demos))

    def next_order(self) -> RenderOrder | None:
        """What isn't rendered yet; none: all is, or is in work."""
        return next(self._orders, None)

    def _all_orders(self) -> Iterator[RenderOrder]:
        for source in [self._sources[file] for file in self._open]:
            for demo in source.demos:
                part = self._part(source, demo)
                if part.exists():
                    self._count(source)
                    continue
                yield RenderOrder(
                    suite=source.task.suite,
                    index=source.task.index,
                    file=source.file,
                    demo=demo,
                    conventions=source.examined.conventions,
                    must_succeed=self._must_succeed,
                    part=part,
                )

    def finish(self, order: RenderOrder, answer: Answer) -> None:
        """Counts a demonstration.

        Raises:
            SceneError: no other of this scene can be rendered either.
        """
        if answer.hopeless:
            raise SceneError(str(answer.error))
        if answer.error is not None:
            self.left_out[order.file][order.demo] = answer.error
        self._count(self._sources[order.file])

    def _count(self, source: Source) -> None:
        self._open[source.file] += 1
        self._show(source, self._open[source.file])
        if self._open[source.file] == len(source.demos):
            self._write(source)

    def _write(self, source: Source) -> None:
        left_out = self.left_out[source.file]
        parts = [self._part(source, demo) for demo in source.demos if demo not in left_out]
        if parts:
            target = write_task(self._dataset, self._capture, _samples(source.task, parts))
            known = {**source.examined.left_out, **left_out}
            origins = {**self._origins(), target.name: {**self._way(source), "left_out": known}}
            partial = self._dataset / f"{ORIGINS}.partial"
            partial.write_text(json.dumps(origins, indent=1) + "\n", "utf-8")
            partial.replace(self._dataset / ORIGINS)
            shutil.rmtree(parts[0].parent)

    def _origins(self) -> dict[str, Any]:
        """What is known of the dataset's tasks, by the names of their files."""
        try:
            found = json.loads((self._dataset / ORIGINS).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _check_origins(self) -> None:
        """Refuses to leave a task as it is that was made otherwise.

        Raises:
            DatasetError: one was.
        """
        origins = self._origins()
        for source in self._sources.values():
            file = _file_of(self._dataset, source.task)
            there = origins.get(file.name)
            if not file.exists() or not isinstance(there, dict):
                continue
            way = self._way(source)
            if changed := [key for key in way if there.get(key) != way[key]]:
                raise DatasetError(
                    f"{file} was made with another {' and '.join(changed)}: delete it, or choose "
                    "another --out"
                )

    def _way(self, source: Source) -> dict[str, Any]:
        """What makes a dataset's task what it is, beside how its frames are taken."""
        return {
            "file": str(source.file),
            "conventions": source.examined.conventions.model_dump(mode="json"),
            "keep_failures": not self._must_succeed,
        }

    def has_result(self) -> bool:
        """Whether the dataset holds anything, or will when it is gone on with."""
        parts = self._dataset / PARTS
        tasks = self._dataset.glob("*.safetensors")
        return any(tasks) or any(parts.glob("*/*.npz"))

    def hopeless(self) -> dict[Path, str]:
        """What is said of each file of whose demonstrations none could be used."""
        return {
            file: source.examined.none_left(file, self.left_out[file])
            for file, source in self._sources.items()
            if len(self.left_out[file]) == len(source.demos)
        }

    def _part(self, source: Source, demo: str) -> Path:
        """Where a rendered demonstration is kept: elsewhere, where it is read in another way."""
        task = f"{source.task.suite}-{source.task.index:02d}"
        way = json.dumps([self._way(source), _RENDERED])
        way = hashlib.sha256(way.encode()).hexdigest()[:8]
        return self._dataset / PARTS / f"{task}-{way}" / f"{demo}.npz"


def _capture(settings: Settings) -> Capture:
    return Capture(
        camera=settings.camera,
        render_size=settings.render_size,
        crop=settings.crop,
        profile=settings.profile,
        action_repeat=settings.action_repeat,
        further_cameras=settings.further_cameras,
    )


def _file_of(dataset: Path, task: SuiteTask) -> Path:
    return task_file(dataset, task.suite, task.index)


def _label(source: Source) -> str:
    return f"{source.task.suite} {source.task.index}"


def _samples(task: SuiteTask, parts: Sequence[Path]) -> TaskSamples:
    episodes = [load_rendered(part) for part in parts]
    lengths = [len(episode.frames) for episode in episodes]
    return TaskSamples(
        suite=task.suite,
        index=task.index,
        instruction=task.instruction,
        frames=_joined([episode.frames for episode in episodes]),
        actions=np.concatenate([episode.actions for episode in episodes]),
        episodes=np.repeat(np.arange(len(episodes), dtype=np.int32), lengths),
        poses=np.concatenate([episode.poses for episode in episodes]),
        pose_names=episodes[0].pose_names,
        motion=_motion(episodes),
        placements=_placements(episodes),
        further_frames=tuple(
            map(_joined, zip(*(episode.further_frames for episode in episodes), strict=True))
        ),
        proprio=np.concatenate([episode.proprio for episode in episodes]),
    )


def _joined(episodes: Iterable[Frames]) -> Frames:
    return Frames.of([frame for frames in episodes for frame in frames])


def _placements(episodes: Sequence[RenderedEpisode]) -> npt.NDArray[np.int64] | None:
    """[samples], seeds; None where one is unknown."""
    seeds = [episode.placement_seed for episode in episodes if episode.placement_seed is not None]
    if len(seeds) < len(episodes):
        return None
    return np.repeat(np.array(seeds, dtype=np.int64), [len(one.frames) for one in episodes])


def _motion(episodes: Sequence[RenderedEpisode]) -> Motion | None:
    """None where a recording lacks it."""
    lengths = [len(episode.robot_states) for episode in episodes]
    if not all(lengths):
        return None
    states = np.concatenate([episode.robot_states for episode in episodes])
    return Motion(
        hand=states[:, 2:5].copy(),
        opening=states[:, 0] - states[:, 1],  # the fingers' joints move in opposite directions
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        starts=np.concatenate([episode.starts for episode in episodes]),
    )
