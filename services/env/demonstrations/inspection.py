"""What is in a file of demonstrations, a folder of them, or a dataset: numbers and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.env.demonstrations.converting import Source, common_repeat, find_sources
from services.env.demonstrations.hdf5 import demo_files, read_episode, read_header
from services.env.demonstrations.orders import Settings
from services.env.demonstrations.rendering import Renderer
from services.env.demonstrations.steps import in_dataset_units
from services.env.suites import TaskCatalog
from vlarl.demonstrations import Dataset, TaskSamples, read_dataset
from vlarl.openvla.images import Frame, decode_image

_CONTROL_RATE = 20.0


@dataclass(frozen=True)
class Summary:
    """One task's demonstrations in numbers."""

    name: str
    lengths: npt.NDArray[np.int64]
    """[episodes], control steps or samples."""
    succeeded: int
    actions: npt.NDArray[np.float64]
    """[steps, 7], in the units of the dataset."""


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
    found = []
    for file in demo_files(path):
        header = read_header(file)
        episodes = [read_episode(file, demo) for demo in header.demos]
        found.append(
            Summary(
                name=file.stem.removesuffix("_demo"),
                lengths=np.array([len(episode.actions) for episode in episodes]),
                succeeded=sum(episode.success for episode in episodes),
                actions=in_dataset_units(np.concatenate([e.expert_actions for e in episodes])),
            )
        )
    return found


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
        FatalError: nothing to be read is here.
    """
    if is_dataset(path):
        dataset = read_dataset(path)
        return list(_frames(dataset, episodes)), _CONTROL_RATE / dataset.capture.action_repeat
    sources = find_sources(path, TaskCatalog(suites))
    repeat = common_repeat(sources, None)
    settings = Settings(job="render", profile="fast", suites=dict(suites), action_repeat=repeat)
    renderer = Renderer(settings)
    shown = [frames for source in sources for frames in _rendered(renderer, source, episodes)]
    renderer.close()
    return shown, _CONTROL_RATE / repeat


def _frames(dataset: Dataset, episodes: int) -> Iterator[list[Frame]]:
    for task in dataset.tasks:
        for number in np.unique(task.episodes)[:episodes]:
            yield [decode_image(task.frames[i]) for i in np.flatnonzero(task.episodes == number)]


def _rendered(renderer: Renderer, source: Source, episodes: int) -> Iterator[list[Frame]]:
    for demo in source.header.demos[:episodes]:
        rendered = renderer.render(source.task.suite, source.task.index, source.file, demo)
        if len(rendered.frames):
            yield [decode_image(frame) for frame in rendered.frames]
