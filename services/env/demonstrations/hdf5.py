"""Files of demonstrations in LIBERO's (robomimic's) HDF5 layout, one a task.

    data                 attributes: problem_info, bddl_file_name, env_args, num_demos, total
        demo_0           attributes: num_samples, init_state
            actions      [T, 7], the simulator's convention: gripper -1 open, +1 closed
            states       [T, 1 + nq + nv], before each action
            robot_states, rewards, dones

Ours hold more: `expert_actions` [T, 7] without the noise that was carried out, `placement_seed` of
each demo, and for all of them `action_repeat`, `suite` and `task_index`. They hold no frames:
`vlarl demos convert` renders them from the states.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from services.env.demonstrations.episodes import Array, Episode
from vlarl.errors import FatalError

Group = Any
"""What h5py hands out: it has no types."""


class DemoFileError(FatalError):
    """A file of demonstrations that can't be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Header:
    """What a file says about all of its demonstrations."""

    task: str
    """The BDDL file's name without its ending."""
    suite: str
    """The folder that the BDDL file lies in, which is the suite's name."""
    action_repeat: int
    """Control steps for which each action was held; 1 where the file doesn't say."""
    demos: tuple[str, ...]
    """Names of the demonstrations, in order."""


def write_demos(
    path: Path, episodes: Sequence[Episode], attributes: dict[str, str | int | float]
) -> None:
    """Writes a file aside and renames it into place.

    Args:
        path: The file.
        episodes: Its demonstrations, demo_0 first.
        attributes: Of the whole file.
    """
    partial = path.with_suffix(".partial")
    with h5py.File(partial, "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(episodes):
            _write_episode(data.create_group(f"demo_{number}"), episode)
        data.attrs["num_demos"] = len(episodes)
        data.attrs["total"] = sum(len(episode.actions) for episode in episodes)
        for key, value in attributes.items():
            data.attrs[key] = value
    partial.replace(path)


def _write_episode(demo: Group, episode: Episode) -> None:
    length = len(episode.actions)
    solved_at_end = np.zeros(length, dtype=np.uint8)
    solved_at_end[-1] = episode.success
    demo["states"] = episode.states
    if len(episode.robot_states):
        demo["robot_states"] = episode.robot_states
    demo["actions"] = episode.actions
    demo["expert_actions"] = episode.expert_actions
    demo["rewards"] = solved_at_end
    demo["dones"] = np.array([0] * (length - 1) + [1], dtype=np.uint8)
    demo.attrs["num_samples"] = length
    demo.attrs["init_state"] = episode.states[0]
    demo.attrs["success"] = episode.success
    if episode.placement_seed is not None:
        demo.attrs["placement_seed"] = episode.placement_seed


def read_header(path: Path) -> Header:
    """What a file holds.

    Raises:
        DemoFileError: it can't be read, or lacks something.
    """
    with _opened(path) as data:
        json_text = str(_attribute(data, "problem_info", path))
        try:
            json.loads(json_text)
        except ValueError as error:
            raise DemoFileError(f"{path}: data's problem_info is not JSON: {error}") from error
        bddl_file = Path(str(_attribute(data, "bddl_file_name", path)))
        demos = sorted(
            (name for name in data if name.startswith("demo_")),
            key=lambda name: int(digits) if (digits := name[5:]).isdigit() else -1,
        )
        if not demos:
            raise DemoFileError(f"{path}: data holds no demo_0")
        repeat = int(data.attrs.get("action_repeat", 1))
        return Header(bddl_file.stem, bddl_file.parent.name, repeat, tuple(demos))


def read_episode(path: Path, demo: str) -> Episode:
    """One demonstration.

    Raises:
        DemoFileError: it lacks something, or its arrays don't fit together.
    """
    with _opened(path) as data:
        if demo not in data:
            raise DemoFileError(f"{path}: data has no {demo}")
        group = data[demo]
        actions, states = (_array(group, name, path) for name in ("actions", "states"))
        length = len(actions)
        if actions.shape != (length, 7) or states.ndim != 2 or len(states) != length or not length:
            raise DemoFileError(
                f"{path}: {demo} has actions {list(actions.shape)} and states "
                f"{list(states.shape)}, not [T, 7] and [T, n]"
            )
        expert = _array(group, "expert_actions", path) if "expert_actions" in group else actions
        if expert.shape != actions.shape:
            raise DemoFileError(f"{path}: {demo} has expert_actions {list(expert.shape)}")
        has_robot = "robot_states" in group
        robot = _array(group, "robot_states", path) if has_robot else np.zeros((0, 9))
        if has_robot and robot.shape != (length, 9):
            raise DemoFileError(
                f"{path}: {demo} has robot_states {list(robot.shape)}, not [{length}, 9]: fingers, "
                "position and quaternion of the hand"
            )
        seed, fixtures = (group.attrs.get(name) for name in ("placement_seed", "model_file"))
        return Episode(
            states=states,
            robot_states=robot,
            actions=actions,
            expert_actions=expert,
            success=bool(group.attrs.get("success", True)),
            placement_seed=None if seed is None else int(seed),
            fixtures=None if fixtures is None else str(fixtures),
        )


def demo_files(path: Path) -> list[Path]:
    """The files that a path names: itself, or those in a folder.

    Raises:
        DemoFileError: there is none.
    """
    files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    if not files:
        raise DemoFileError(f"{path} holds no .hdf5 file")
    if not files[0].exists():
        raise DemoFileError(f"{path} doesn't exist")
    return files


@contextmanager
def _opened(path: Path) -> Iterator[Group]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DemoFileError(f"{path} can't be read as HDF5: {error}") from error
    with file:
        if "data" not in file:
            raise DemoFileError(f"{path} has no group 'data'")
        yield file["data"]


def _attribute(data: Group, name: str, path: Path) -> object:
    if name not in data.attrs:
        raise DemoFileError(f"{path}: data has no attribute {name!r}")
    return data.attrs[name]


def _array(group: Group, name: str, path: Path) -> Array:
    if name not in group:
        raise DemoFileError(f"{path}: {group.name.lstrip('/')} has no {name!r}")
    array = np.asarray(group[name][()], dtype=np.float64)
    if not np.isfinite(array).all():
        raise DemoFileError(f"{path}: {group.name.lstrip('/')}/{name} is not finite")
    return array
