"""What is in a file of demonstrations, a folder of them, or a dataset: numbers and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlarl.config.libero import CONTROL_RATE
from vlarl.data.dataset import Dataset, TaskSamples, read_dataset
from vlarl.images import Frame, decode_image
from vlarl_env.errors import BrokenSceneError, NoRoomError
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_jobs.demonstrations.conventions import Conventions
from vlarl_jobs.demonstrations.converting import Source, common_repeat, find_sources
from vlarl_jobs.demonstrations.episodes import Episode
from vlarl_jobs.demonstrations.examining import Terms, examine
from vlarl_jobs.demonstrations.hdf5 import DemoFileError, demo_files, read_episode, read_header
from vlarl_jobs.demonstrations.messages import RenderOrder, SceneError, Settings
from vlarl_jobs.demonstrations.rendering import Renderer
from vlarl_jobs.demonstrations.steps import in_dataset_units


@dataclass(frozen=True)
class Summary:
    """One task's demonstrations in numbers."""

    name: str
    lengths: npt.NDArray[np.int64]
    """[episodes], control steps or samples."""
    succeeded: int
    actions: npt.NDArray[np.float64]
    """[steps, 7], in the units of the dataset; as the file has them where those can't be told."""
    notes: tuple[str, ...] = ()
    """What was recognised, and what can't be used."""


def is_dataset(path: Path) -> bool:
    """Whether a path is a dataset; otherwise it is a file or folder of demonstrations."""
    return (path / "dataset.json").exists()


def summaries(path: Path) -> list[Summary]:
    """A summary a task.

    Raises:
        FatalError: nothing to be read is here.
    """
    if is_dataset(path):
        return _of_dataset(read_dataset(path))
    return [_of_file(file) for file in demo_files(path)]


def _of_file(file: Path) -> Summary:
    """Also of a file that can't be converted: its numbers say why."""
    header = read_header(file)
    conventions: Conventions | None = None
    try:
        examined = examine(file, Terms(keep_failures=True))
        conventions = examined.conventions
        notes = (f"{file.name}: {conventions.words()}", *examined.left_out.values())
        names = examined.demos
    except DemoFileError as error:
        notes, names = (str(error),), header.demos
    episodes = [episode for demo in names if (episode := _readable(file, demo)) is not None]
    if not episodes:
        raise DemoFileError(notes[0])
    told = [episode.expert_actions for episode in episodes]
    if conventions is not None:
        told = [in_dataset_units(conventions.apply(actions)) for actions in told]
    return Summary(
        name=file.stem.removesuffix("_demo"),
        lengths=np.array([len(episode.actions) for episode in episodes]),
        succeeded=sum(episode.success for episode in episodes),
        actions=np.concatenate(told),
        notes=notes,
    )


def _readable(file: Path, demo: str) -> Episode | None:
    try:
        return read_episode(file, demo)
    except DemoFileError:
        return None


def _of_dataset(dataset: Dataset) -> list[Summary]:
    found = []
    for task in dataset.tasks:
        _, lengths = np.unique(task.episodes, return_counts=True)
        found.append(
            Summary(
                name=f"{task.suite} {task.index}: {task.instruction}",
                lengths=lengths.astype(np.int64),
                succeeded=_successes(task),
                actions=task.actions.astype(np.float64),
            )
        )
    return found


def _successes(task: TaskSamples) -> int:
    """Number of the episodes that reached their goal."""
    chosen = slice(None) if task.succeeded is None else task.succeeded
    return len(np.unique(task.episodes[chosen]))


def filmed(
    path: Path, episodes: int, suites: Mapping[str, Path]
) -> tuple[list[list[Frame]], float]:
    """Frames of each task's first episodes, and how many there are a second.

    Args:
        path: A dataset, whose frames are taken, or demonstrations, which are rendered.
        episodes: Most episodes of a task.
        suites: Suites of our own: name = folder of BDDL files.

    Raises:
        FatalError: nothing to be read is here, or a scene can't be built or placed.
    """
    if is_dataset(path):
        dataset = read_dataset(path)
        return list(_frames(dataset, episodes)), CONTROL_RATE / dataset.capture.action_repeat
    sources = find_sources(path, TaskCatalog(suites), Terms(keep_failures=True))
    repeat = common_repeat(sources, None)
    settings = Settings(job="render", profile="fast", suites=dict(suites), action_repeat=repeat)
    renderer = Renderer(settings)
    try:
        shown = [frames for source in sources for frames in _rendered(renderer, source, episodes)]
    except (BrokenSceneError, NoRoomError) as error:
        raise SceneError(str(error)) from error
    finally:
        renderer.close()
    return shown, CONTROL_RATE / repeat


def _frames(dataset: Dataset, episodes: int) -> Iterator[list[Frame]]:
    for task in dataset.tasks:
        for number in np.unique(task.episodes)[:episodes]:
            places = np.flatnonzero(task.episodes == number)
            yield [_side_by_side(task, int(place)) for place in places]


def _side_by_side(task: TaskSamples, place: int) -> Frame:
    """What each camera saw, the main one on the left."""
    return np.concatenate([decode_image(frames[place]) for frames in task.all_frames], axis=1)


def _rendered(renderer: Renderer, source: Source, episodes: int) -> Iterator[list[Frame]]:
    for demo in source.demos[:episodes]:
        rendered = renderer.render(
            RenderOrder(
                suite=source.task.suite,
                index=source.task.index,
                file=source.file,
                demo=demo,
                conventions=source.examined.conventions,
                must_succeed=False,
                part=source.file,  # nothing is kept
            )
        )
        yield [decode_image(frame) for frame in rendered.frames]
