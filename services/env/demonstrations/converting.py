"""Makes files of demonstrations into a dataset: frames are rendered from the recorded states."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.env.demonstrations.crew import run_crew
from services.env.demonstrations.hdf5 import DemoFileError, Header, demo_files, read_header
from services.env.demonstrations.orders import Answer, RenderOrder, Settings
from services.env.demonstrations.parts import RenderedEpisode, load_rendered
from services.env.demonstrations.progress import TaskBars
from services.env.suites import SuiteTask, TaskCatalog
from vlarl.demonstrations import (
    Capture,
    Frames,
    Motion,
    TaskSamples,
    describe_dataset,
    task_file,
    write_task,
)

PARTS = ".parts"
"""Folder of rendered episodes within the dataset's folder."""


@dataclass(frozen=True)
class Source:
    """A file of demonstrations and its task."""

    file: Path
    header: Header
    task: SuiteTask


def find_sources(path: Path, catalog: TaskCatalog) -> list[Source]:
    """The files at a path, and which task each belongs to.

    Raises:
        DemoFileError: a file can't be read, or is of a task that nobody knows.
    """
    sources: list[Source] = []
    for file in demo_files(path):
        header = read_header(file)
        task = _task_of(file, header, catalog)
        if twin := next((source for source in sources if source.task == task), None):
            raise DemoFileError(
                f"{file} and {twin.file} are of the same task, {task.suite} {task.index}: convert "
                "them into two datasets"
            )
        sources.append(Source(file.resolve(), header, task))
    return sources


def _task_of(file: Path, header: Header, catalog: TaskCatalog) -> SuiteTask:
    named = [
        task
        for suite in catalog.suites
        for task in catalog.tasks(suite)
        if task.name == header.task
    ]
    of_suite = [task for task in named if task.suite == header.suite]
    if not named:
        raise DemoFileError(
            f"{file}: data's bddl_file_name names the task {header.task!r}, which no suite has; "
            "name the folder of its BDDL file with --bddl"
        )
    return (of_suite or named)[0]


def common_repeat(sources: Sequence[Source], wanted: int | None) -> int:
    """The action repeat of the dataset.

    Args:
        sources: What it is made from.
        wanted: What was asked for; none: the recordings' own.

    Raises:
        DemoFileError: recordings whose actions were held can't be had at another repeat.
    """
    recorded = {source.header.action_repeat: source for source in sources}
    repeat = wanted or max(recorded)
    for found, source in recorded.items():
        if found not in (1, repeat):
            raise DemoFileError(
                f"{source.file} holds each action for {found} control steps, so that no dataset "
                f"with --action-repeat {repeat} can be made from it"
            )
    return repeat


async def convert(
    sources: Sequence[Source], settings: Settings, dataset: Path, processes: int
) -> list[Path]:
    """Renders what the dataset lacks yet. May be killed at any time: called again, it goes on.

    Raises:
        DemoFileError: a demonstration can't be used.
        DatasetError: the dataset's frames were taken in another way.
        WorkerDiedError: a worker ended on its own.
    """
    dataset, capture = dataset.resolve(), _capture(settings)
    describe_dataset(dataset, capture)
    done = {s.file: 0 for s in sources if not _file_of(dataset, s.task).exists()}
    with TaskBars([(_label(s), len(s.header.demos)) for s in sources]) as bars:

        def count(source: Source) -> None:
            done[source.file] += 1
            bars.show(_label(source), done[source.file])
            if done[source.file] == len(source.header.demos):
                _write(dataset, capture, source)

        def on_answer(order: RenderOrder, answer: Answer) -> None:
            if answer.error is not None:
                raise DemoFileError(answer.error)
            count(next(source for source in sources if source.file == order.file))

        for source in sources:
            bars.show(_label(source), 0 if source.file in done else len(source.header.demos))
        orders = _orders([s for s in sources if s.file in done], dataset, count)
        await run_crew(settings, processes, lambda: next(orders, None), on_answer)
    shutil.rmtree(dataset / PARTS, ignore_errors=True)
    return [_file_of(dataset, source.task) for source in sources]


def _capture(settings: Settings) -> Capture:
    return Capture(
        camera=settings.camera,
        render_size=settings.render_size,
        crop=settings.crop,
        profile=settings.profile,
        action_repeat=settings.action_repeat,
    )


def _file_of(dataset: Path, task: SuiteTask) -> Path:
    return task_file(dataset, task.suite, task.index)


def _label(source: Source) -> str:
    return f"{source.task.suite} {source.task.index}"


def _part(dataset: Path, source: Source, demo: str) -> Path:
    return dataset / PARTS / f"{source.task.suite}-{source.task.index:02d}" / f"{demo}.npz"


def _orders(
    sources: Sequence[Source], dataset: Path, rendered: Callable[[Source], None]
) -> Iterator[RenderOrder]:
    """What isn't rendered yet; `rendered` is told of what is."""
    for source in sources:
        for demo in source.header.demos:
            part = _part(dataset, source, demo)
            if part.exists():
                rendered(source)
                continue
            yield RenderOrder(
                suite=source.task.suite,
                index=source.task.index,
                file=source.file,
                demo=demo,
                part=part,
            )


def _write(dataset: Path, capture: Capture, source: Source) -> None:
    episodes = [load_rendered(_part(dataset, source, demo)) for demo in source.header.demos]
    lengths = [len(episode.frames) for episode in episodes]
    samples = TaskSamples(
        suite=source.task.suite,
        index=source.task.index,
        instruction=source.task.instruction,
        frames=Frames.of([frame for episode in episodes for frame in episode.frames]),
        actions=np.concatenate([episode.actions for episode in episodes]),
        episodes=np.repeat(np.arange(len(episodes), dtype=np.int32), lengths),
        poses=np.concatenate([episode.poses for episode in episodes]),
        pose_names=episodes[0].pose_names,
        motion=_motion(episodes),
        placements=_placements(episodes),
    )
    write_task(dataset, capture, samples)
    shutil.rmtree(_part(dataset, source, "").parent)


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
