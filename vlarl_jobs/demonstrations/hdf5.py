"""Files of demonstrations in LIBERO's (robomimic's) HDF5 layout, one a task.

    data                 attributes: problem_info, bddl_file_name, env_args, num_demos, total
        demo_0           attributes: num_samples, init_state
            actions      [T, 7], the simulator's convention: gripper -1 open, +1 closed
            states       [T, 1 + nq + nv], before each action
            robot_states, rewards, dones

Ours hold more: `expert_actions` [T, 7] without the noise that was carried out, `placement_seed` of
each demo, and for all of them `action_repeat`, `suite` and `task_index`. They hold no frames:
`vlarl demos convert` renders them from the states.

What others write is read as far as it says the same: attributes as bytes or none at all,
robomimic's `env_args` and masks, demonstrations of any name. Beside `actions` and `states` nothing
is needed: what doesn't fit is passed over, and what only our simulator can know is taken from our
own files alone. Actions are returned as the file has them; what they mean is told by `examining`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vlarl.errors import FatalError
from vlarl_jobs.demonstrations.episodes import Array, Episode

Group = Any
"""What h5py hands out: it has no types."""

ENDINGS = (".hdf5", ".h5")
"""Of files of demonstrations, in small or capital letters."""

_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises where bytes are damaged, or are no numbers."""

_POINTER = b"version https://git-lfs"


class DemoFileError(FatalError):
    """A file of demonstrations that can't be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Header:
    """What a file says about all of its demonstrations."""

    task: str
    """The BDDL file's name without its ending; where the file doesn't say, by its own name."""
    suite: str
    """The folder that the BDDL file lies in, which is the suite's name; empty: unknown."""
    named_by: str
    """Where the task's name comes from, for people."""
    environment: str
    """The environment that the file says it was recorded in; empty: it doesn't."""
    ours: bool
    """Whether `vlarl demos collect` wrote it, so that its conventions are known."""
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
        DemoFileError: it can't be read, or holds no demonstration.
    """
    with _opened(path) as data:
        try:
            names = [name for name in data if data.get(name, getclass=True) is not h5py.Dataset]
            attributes = {name: _text(value) for name, value in data.attrs.items()}
        except _DAMAGE as error:
            raise DemoFileError(_damaged(path, error)) from error
        if not names:
            raise DemoFileError(f"{path}: data holds no demo_0")
        environment = _json(attributes.get("env_args", ""))
        bddl_file, named_by = _bddl_file(attributes, environment)
        if not bddl_file:
            bddl_file, named_by = _without_ending(path.name), "its own name"
        *folders, file = re.split(r"[/\\]", bddl_file)
        repeat = attributes.get("action_repeat", "1")
        if not repeat.isdecimal() or not int(repeat):
            raise DemoFileError(f"{path}: data's action_repeat is {repeat!r}, no number of steps")
        return Header(
            task=re.sub(r"\.bddl$", "", file, flags=re.IGNORECASE),
            suite=folders[-1] if folders else "",
            named_by=named_by,
            environment=str(environment.get("env_name", attributes.get("env", ""))),
            ours=_is_ours(data),
            action_repeat=int(repeat),
            demos=tuple(sorted(names, key=_natural)),
        )


def _bddl_file(attributes: dict[str, str], environment: dict[str, Any]) -> tuple[str, str]:
    """The BDDL file's path and where it is named; empty where nothing does."""
    if attributes.get("bddl_file_name"):
        return attributes["bddl_file_name"], "data's bddl_file_name"
    arguments = environment.get("env_kwargs")
    for place in (environment, arguments if isinstance(arguments, dict) else {}):
        for key in ("bddl_file", "bddl_file_name"):
            if place.get(key):
                return str(place[key]), "data's env_args"
    return "", ""


def _without_ending(name: str) -> str:
    """A file's name as LIBERO names tasks: without `.hdf5` and `_demo`."""
    ending = next((one for one in ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)].removesuffix("_demo")


def _natural(name: str) -> tuple[str, int, str]:
    """Orders demo_10 after demo_9."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return stem, int(digits) if digits else -1, name


def read_episode(path: Path, demo: str) -> Episode:
    """One demonstration, its actions as the file has them.

    Raises:
        DemoFileError: it lacks something, or its arrays don't fit together.
    """
    with _opened(path) as data:
        group = data.get(demo)
        if group is None:
            raise DemoFileError(f"{path}: data has no {demo}")
        if not isinstance(group, h5py.Group):
            raise DemoFileError(f"{path}: {demo} is no group")
        actions, states = (_array(group, name, path) for name in ("actions", "states"))
        length = actions.shape[0] if actions.ndim else 0
        if actions.shape != (length, 7) or states.ndim != 2 or len(states) != length or not length:
            raise DemoFileError(
                f"{path}: {demo} has actions {list(actions.shape)} and states "
                f"{list(states.shape)}, not [T, 7] and [T, n]"
            )
        expert = _array(group, "expert_actions", path) if "expert_actions" in group else actions
        if expert.shape != actions.shape:
            raise DemoFileError(f"{path}: {demo} has expert_actions {list(expert.shape)}")
        ours = _is_ours(data)
        flag = _flag(_attribute(group, "success", path)) if ours else None
        fixtures = _attribute(group, "model_file", path)
        return Episode(
            states=states,
            robot_states=_robot_states(group, length, path, ours=ours),
            actions=actions,
            expert_actions=expert,
            success=_rewarded(group, length) if flag is None else flag,
            seen_to_succeed=bool(flag),
            placement_seed=_placement_seed(group, path) if ours else None,
            fixtures=None if fixtures is None else _text(fixtures) or None,
        )


def _is_ours(data: Group) -> bool:
    return "action_repeat" in data.attrs


def _attribute(group: Group, name: str, path: Path) -> object:
    """None where there is none."""
    try:
        return group.attrs.get(name)
    except _DAMAGE as error:
        raise DemoFileError(_damaged(path, error)) from error


def _flag(value: object) -> bool | None:
    """An attribute that is true or false; None where it is neither, as the text "False" is."""
    found = np.asarray(value)
    return bool(found.item()) if found.size == 1 and found.dtype.kind in "biu" else None


def _placement_seed(group: Group, path: Path) -> int | None:
    """None where there is none."""
    value = _attribute(group, "placement_seed", path)
    if value is None:
        return None
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "iu" or not 0 <= found.item() < 2**63:
        raise DemoFileError(
            f"{path}: {group.name.lstrip('/')} has the placement_seed {_text(value)!r}, which is "
            "no seed of ours"
        )
    return int(found.item())


def _robot_states(group: Group, length: int, path: Path, *, ours: bool) -> Array:
    """[T, 9]; [0, 9] where they weren't recorded, or where others' are something else."""
    found = _optional(group, "robot_states")
    if found is not None and found.shape == (length, 9) and np.isfinite(found).all():
        return found
    if ours and "robot_states" in group:
        raise DemoFileError(
            f"{path}: {group.name.lstrip('/')} has robot_states that aren't [{length}, 9] finite "
            "numbers: fingers, position and quaternion of the hand"
        )
    return np.zeros((0, 9))


def _rewarded(group: Group, length: int) -> bool:
    """Whether any reward was given or it was ever done; True where the file has neither."""
    found = [_optional(group, name) for name in ("rewards", "dones")]
    told = [values for values in found if values is not None and values.size == length]
    return not told or any(bool((values > 0).any()) for values in told)


def demo_files(path: Path) -> list[Path]:
    """The files that a path names: itself, or those in a folder and in the folders in it. Hidden
    files are passed over, among them the `._NAME` that macOS leaves behind.

    Raises:
        DemoFileError: there is none.
    """
    if not path.exists():
        raise DemoFileError(f"{path} doesn't exist")
    if not path.is_dir():
        return [path]
    visible = _visible(path)
    inside = [file for folder in visible if folder.is_dir() for file in _visible(folder)]
    files = [file for file in [*visible, *inside] if _is_demo_file(file)]
    if not files:
        raise DemoFileError(f"{path} holds no .hdf5 or .h5 file, nor do the folders in it")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_demo_file(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.is_dir()


@contextmanager
def _opened(path: Path) -> Iterator[Group]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DemoFileError(_unreadable(path, error)) from error
    with file:
        try:
            data = file.get("data")
        except _DAMAGE as error:
            raise DemoFileError(_damaged(path, error)) from error
        if not isinstance(data, h5py.Group):
            raise DemoFileError(f"{path} has no group 'data'")
        yield data


def _unreadable(path: Path, error: OSError) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as reason:
        return f"{path} can't be read: {reason.strerror or reason}"
    if start == _POINTER:
        return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it is"
    if not start:
        return f"{path} can't be read as HDF5: it is empty; copy it again"
    return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} can't be read as HDF5: {error}; copy it again, or move it away"


def _text(value: object) -> str:
    """An attribute as text: h5py has strings, bytes, and arrays of one of them."""
    if isinstance(value, np.ndarray):
        return _text(value.flat[0]) if value.size == 1 else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if isinstance(value, h5py.Empty) else str(value)


def _json(text: str) -> dict[str, Any]:
    """A JSON object; an empty one where the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _array(group: Group, name: str, path: Path) -> Array:
    place = group.name.lstrip("/")
    if name not in group:
        raise DemoFileError(f"{path}: {place} has no {name!r}")
    try:
        array = np.asarray(group[name][()], dtype=np.float64)
    except _DAMAGE as error:
        raise DemoFileError(f"{path}: {place}/{name} can't be read: {error}") from error
    if not np.isfinite(array).all():
        raise DemoFileError(f"{path}: {place}/{name} is not finite")
    return array


def _optional(group: Group, name: str) -> Array | None:
    """An array that can be done without; None where there is none, or no numbers."""
    try:
        return np.asarray(group[name][()], dtype=np.float64) if name in group else None
    except _DAMAGE:
        return None
