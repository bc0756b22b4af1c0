"""Demonstrations and rollouts as training reads them: frames and an action, sample by sample.

    DATASET/dataset.json                  how the frames were taken
            libero_spatial-00.safetensors one file a task, or several: libero_spatial-00.PART...

`vlarl demos` writes such a folder from an expert's demonstrations, `vlarl up` and `vlarl eval` from
a policy's rollouts; `vlarl sft` reads it. None needs the others' environment. A file is written
aside and renamed: a folder that a crash left behind holds whole tasks, or parts, only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vlarl.config.libero import ACTION_DIM
from vlarl.disk import room_for
from vlarl.errors import FatalError
from vlarl.files import share
from vlarl.invocation import invocation

LARGEST_ACTION = 1.001
"""Beyond it a movement isn't what the arm did: the simulator cuts at 1. A float32 may be a hair
off."""

FORMAT = 1
_DESCRIPTION = "dataset.json"
_MAY_LACK = ("placements", "succeeded")
"""Arrays of a task, one value a sample, that not every recording has."""
_FRAMES, _OFFSETS = "frames", "frame_offsets"
"""Names of the main camera's arrays; those of further cameras end in their number, from 1."""
_LONGEST_HEADER = 1 << 20
"""Bytes of a file's description that are looked at."""


class DatasetError(FatalError):
    """A dataset that can't be read or added to; the message names the file and says what to do."""


@dataclass(frozen=True)
class Capture:
    """How a dataset's frames were taken. All of its tasks share it."""

    camera: str
    """The main camera in the scene."""
    render_size: int
    """Side of the rendered frame in pixels."""
    crop: tuple[int, int, int, int] | None
    """Part of the upright frame that was kept: top, left, height, width; None: all."""
    profile: str
    """The simulator's profile, faithful or fast; of other sources any word."""
    action_repeat: int
    """Control steps for which each action is held."""
    further_cameras: tuple[str, ...] = ()
    """Cameras whose frames were taken at the same moments, in the same way."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """All of them, the main one first."""
        return (self.camera, *self.further_cameras)

    def written(self) -> dict[str, Any]:
        """Its fields; without further cameras where there are none, as before these were known."""
        fields = asdict(self)
        if not self.further_cameras:
            del fields["further_cameras"]
        return fields


@dataclass(frozen=True)
class Frames(Sequence[bytes]):
    """N encoded frames in one buffer."""

    buffer: NDArray[np.uint8]
    """[bytes], one JPEG or PNG file after the other."""
    offsets: NDArray[np.int64]
    """[N + 1]: frame i is buffer[offsets[i] : offsets[i + 1]]."""

    @classmethod
    def of(cls, encoded: Sequence[bytes]) -> Frames:
        """Puts encoded frames together."""
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def only(self, places: NDArray[np.int64]) -> Frames:
        """Some of them, by number."""
        return Frames.of([self[int(place)] for place in places])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        place = range(len(self))[index]
        return self.buffer[self.offsets[place] : self.offsets[place + 1]].tobytes()


@dataclass(frozen=True)
class Motion:
    """How the hand moved in E episodes, at every control step: what rewards are labelled by."""

    hand: NDArray[np.float32]
    """[T, 3], the end effector's position in metres, before each control step of all episodes."""
    opening: NDArray[np.float32]
    """[T], metres between the fingers."""
    offsets: NDArray[np.int64]
    """[E + 1]: episode e is offsets[e] : offsets[e + 1]."""
    starts: NDArray[np.int32]
    """[N], the control step of its episode before which each sample's frame was taken."""

    def fits(self, episodes: NDArray[np.int32]) -> bool:
        """Whether this is the motion of these episodes, given as [N] numbers of the samples."""
        steps = len(self.hand)
        lengths = np.diff(self.offsets)
        return bool(
            self.hand.shape == (steps, 3)
            and self.opening.shape == (steps,)
            and len(self.offsets) > 0
            and self.offsets[0] == 0
            and self.offsets[-1] == steps
            and (lengths >= 0).all()
            and self.starts.shape == episodes.shape
            and (not len(episodes) or episodes.max() < len(lengths))
            and (self.starts < lengths[episodes]).all()
        )


@dataclass(frozen=True)
class TaskSamples:
    """One task's N samples, episode by episode, in order."""

    suite: str
    index: int
    instruction: str
    frames: Frames
    """What the main camera saw before each action."""
    actions: NDArray[np.float32]
    """[N, 7], what the expert would do, or what the policy did, in the units of the environment:
    translation, rotation, gripper (0 closed, 1 open)."""
    episodes: NDArray[np.int32]
    """[N], number of the episode that each sample belongs to; never decreases."""
    poses: NDArray[np.float32]
    """[N, P], privileged positions in metres, for those who pretrain towers; P may be 0."""
    pose_names: tuple[str, ...]
    """[P], what each of them is."""
    motion: Motion | None = None
    """None: the recordings don't have it."""
    placements: NDArray[np.int64] | None = None
    """[N], what the scene of each sample's episode was drawn with: a seed of our own, or -1 - i of
    official initial state i. None: unknown, each episode is its own."""
    succeeded: NDArray[np.bool_] | None = None
    """[N], whether each sample's episode reached its goal. None: all did."""
    further_frames: tuple[Frames, ...] = ()
    """What each further camera saw at the same moments, in the capture's order."""
    proprio: NDArray[np.float32] | None = None
    """[N, P], the arm's proprioception before each action, in the units of the environment. None:
    it wasn't recorded."""

    def __post_init__(self) -> None:
        """Raises DatasetError where the arrays don't fit together."""
        count = len(self.frames)
        fits = (
            self.actions.shape == (count, ACTION_DIM)
            and self.episodes.shape == (count,)
            and self.poses.shape == (count, len(self.pose_names))
        )
        if not fits:
            raise DatasetError(
                f"{self.suite} task {self.index}: {count} frames with actions "
                f"{list(self.actions.shape)}, episodes {list(self.episodes.shape)} and poses "
                f"{list(self.poses.shape)}"
            )
        for name in _MAY_LACK:
            array = getattr(self, name)
            if array is not None and array.shape != (count,):
                shape = list(array.shape)
                raise DatasetError(
                    f"{self.suite} task {self.index}: {count} frames with {name} {shape}"
                )
        for frames in self.further_frames:
            if len(frames) != count:
                raise DatasetError(
                    f"{self.suite} task {self.index}: {count} frames of one camera, "
                    f"{len(frames)} of another"
                )
        self._check_proprioception(count)
        if not np.isfinite(self.actions).all():
            raise DatasetError(f"{self.suite} task {self.index}: an action is not finite")
        if self.motion is not None and not self.motion.fits(self.episodes):
            raise DatasetError(
                f"{self.suite} task {self.index}: the motion isn't that of the samples' episodes"
            )

    def _check_proprioception(self, count: int) -> None:
        state = self.proprio
        if state is None:
            return
        if state.ndim != 2 or len(state) != count:
            raise DatasetError(
                f"{self.suite} task {self.index}: {count} frames with proprioception "
                f"{list(state.shape)}"
            )
        if not np.isfinite(state).all():
            raise DatasetError(f"{self.suite} task {self.index}: proprioception is not finite")

    @property
    def all_frames(self) -> tuple[Frames, ...]:
        """Of each camera, the main one's first."""
        return (self.frames, *self.further_frames)

    def only(self, chosen: NDArray[np.bool_]) -> TaskSamples:
        """Some of the samples, given as [N]."""
        arrays = {
            name: value[chosen]
            for name in ("actions", "episodes", "poses", "proprio", *_MAY_LACK)
            if (value := getattr(self, name)) is not None
        }
        if self.motion is not None:
            arrays["motion"] = replace(self.motion, starts=self.motion.starts[chosen])
        places = np.flatnonzero(chosen)
        frames, *further = (one.only(places) for one in self.all_frames)
        return replace(self, frames=frames, further_frames=tuple(further), **arrays)


@dataclass(frozen=True)
class Dataset:
    """A folder's content."""

    capture: Capture
    tasks: list[TaskSamples]


def task_file(directory: Path, suite: str, index: int, part: str = "") -> Path:
    """Where a task's samples lie, or a part of them."""
    ending = f".{part}" if part else ""
    return directory / f"{suite}-{index:02d}{ending}.safetensors"


def describe_dataset(directory: Path, capture: Capture) -> None:
    """Begins a dataset, or makes sure that one takes frames in this way.

    Raises:
        DatasetError: the folder's frames were taken in another way, or it can't be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if directory.is_file() else error.strerror
        raise DatasetError(f"{directory} can't be made: {reason}; choose another folder") from error
    description = directory / _DESCRIPTION
    if description.exists():
        if (there := _read_capture(description)) != capture:
            raise DatasetError(f"{directory} holds frames taken as {there}, not as {capture}")
    else:
        content = {"format": FORMAT, **capture.written()}
        partial = description.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(description)


def abandon_dataset(directory: Path, *, keep_folder: bool) -> None:
    """Takes back the description of a dataset to which no task was added, and the folder, unless
    something else lies in it.
    """
    (directory / _DESCRIPTION).unlink(missing_ok=True)
    if not keep_folder and not any(directory.iterdir()):
        directory.rmdir()


def write_task(directory: Path, capture: Capture, samples: TaskSamples, part: str = "") -> Path:
    """Adds a task, or a part of one, to a dataset, or replaces it.

    Raises:
        DatasetError: the folder's frames were taken in another way, or of other cameras.
        DiskFullError: there is no room.
    """
    if len(samples.all_frames) != len(capture.cameras):
        raise DatasetError(
            f"{samples.suite} task {samples.index} has frames of {len(samples.all_frames)} "
            f"cameras, not of {', '.join(capture.cameras)}"
        )
    describe_dataset(directory, capture)
    target = task_file(directory, samples.suite, samples.index, part)
    partial = target.with_suffix(".partial")
    tensors: dict[str, NDArray[np.generic]] = {
        "actions": samples.actions,
        "episodes": samples.episodes,
        "poses": samples.poses,
    }
    for number, frames in enumerate(samples.all_frames):
        tensors |= dict(zip(_frame_arrays(number), (frames.buffer, frames.offsets), strict=True))
    if samples.proprio is not None:
        tensors["proprio"] = samples.proprio
    if samples.motion is not None:
        tensors |= {f"motion_{name}": value for name, value in vars(samples.motion).items()}
    found = {name: getattr(samples, name) for name in _MAY_LACK}
    tensors |= {name: array for name, array in found.items() if array is not None}
    metadata = {
        "suite": samples.suite,
        "index": str(samples.index),
        "instruction": samples.instruction,
        "pose_names": json.dumps(samples.pose_names),
    }
    needed = sum(array.nbytes for array in tensors.values())
    with room_for(f"the dataset's {target.name}", directory, needed):
        save_file(tensors, partial, metadata)
        _sort_metadata(partial)
        share(partial)
    partial.replace(target)
    return target


def _frame_arrays(camera: int) -> tuple[str, str]:
    """Names of a camera's arrays, by its number in the capture."""
    ending = f"_{camera}" if camera else ""
    return f"{_FRAMES}{ending}", f"{_OFFSETS}{ending}"


def _sort_metadata(path: Path) -> None:
    """Puts a safetensors file's metadata in order, in place.

    The library writes it in another order each time. A dataset that is made again by the same
    command is the same to the byte, so that a run may go on with it.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:  # as it is, but for the way that a library escapes characters
            file.seek(8)
            file.write(ordered.ljust(length))


def read_dataset(directory: Path, *, with_frames: bool = True) -> Dataset:
    """All tasks of a folder, by name; one in several parts comes in as many.

    Args:
        directory: the folder.
        with_frames: False: all but the frames, in a moment; these are empty.

    Raises:
        DatasetError: no dataset is here, or a file is broken.
    """
    capture, files = find_dataset(directory)
    tasks = [_read_task(file, capture, with_frames=with_frames) for file in files]
    return Dataset(capture, tasks)


def check_dataset(directory: Path, cameras: Sequence[str] = (), proprio: int = 0) -> None:
    """Looks at all of a folder's dataset but its frames, in a moment.

    Args:
        directory: the folder.
        cameras: that the policy sees, as `require_cameras` takes them.
        proprio: numbers of proprioception that it reads.

    Raises:
        DatasetError: no dataset is here, a file is broken, holds what no demonstration can, or
            lacks what the policy reads.
    """
    capture, files = find_dataset(directory)
    require_cameras(directory, capture.cameras, cameras)
    tasks = [_read_task(file, capture, with_frames=False) for file in files]
    if not any(len(task.frames) for task in tasks):
        raise DatasetError(f"{directory} holds no sample: make it anew from other demonstrations")
    for task in tasks if proprio else ():
        require_proprioception(directory, task, proprio)


def require_cameras(directory: Path, has: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses a dataset without the frames of one of several cameras that a policy sees. One that
    sees a single camera takes the main one's, whatever its name.

    Raises:
        DatasetError: one is missing.
    """
    missing = [camera for camera in wanted if camera not in has]
    if missing and len(wanted) > 1:
        options = " ".join(f"--camera {camera}" for camera in wanted)
        raise DatasetError(
            f"{directory} has no frames of {' and '.join(missing)}, which the policy sees: make it "
            f"anew by `{invocation()} demos convert` with {options}"
        )


def require_proprioception(directory: Path, task: TaskSamples, width: int) -> None:
    """Refuses a task without the proprioception that a policy reads.

    Raises:
        DatasetError: it has none, or of another width.
    """
    has = 0 if task.proprio is None else task.proprio.shape[1]
    if has != width:
        raise DatasetError(
            f"{directory}: {task.suite} task {task.index} has {has} numbers of proprioception, and "
            f"the policy reads {width}: make it anew by `{invocation()} demos convert`"
        )


def find_dataset(directory: Path) -> tuple[Capture, list[Path]]:
    """How a folder's dataset was captured, and the files of its tasks, by name; none is read.

    Raises:
        DatasetError: no dataset is here, an empty one, or one of another format.
    """
    convert = f"`{invocation()} demos convert`"
    description = directory / _DESCRIPTION
    if not description.exists():
        raise DatasetError(
            f"{directory}: no dataset here ({_DESCRIPTION} is missing); make one with {convert}"
        )
    capture = _read_capture(description)
    found = sorted(directory.glob("*.safetensors"))
    files = [file for file in found if not file.name.startswith(".")]  # as macOS leaves behind
    if not files:
        raise DatasetError(f"{directory} holds no task yet; fill it with {convert}")
    return capture, files


def dataset_digest(directory: Path) -> str:
    """SHA-256 of how a folder's dataset was captured and of what its files say that they hold:
    tasks, instructions, numbers of samples. No frame is read.

    Raises:
        DatasetError: no dataset is here, or a file can't be read.
    """
    capture, files = find_dataset(directory)
    fields = ", ".join(f"{name}={value!r}" for name, value in capture.written().items())
    digest = hashlib.sha256(f"Capture({fields})".encode())
    for path in files:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                digest.update(f"{path.name} {path.stat().st_size}\n".encode())
                digest.update(file.read(min(length, _LONGEST_HEADER)))
        except OSError as error:
            raise DatasetError(f"{path} can't be read: {error!r}; make it anew") from error
    return digest.hexdigest()


def _read_capture(path: Path) -> Capture:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise DatasetError(f"{path} is of another format than {FORMAT}: make it anew")
        crop, further = content.pop("crop"), content.pop("further_cameras", ())
        crop = tuple(crop) if crop else None
        return Capture(crop=crop, further_cameras=tuple(further), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} can't be read: {error!r}") from error


def _read_task(path: Path, capture: Capture, *, with_frames: bool = True) -> TaskSamples:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
            further = {*_MAY_LACK, "proprio"} & {*file.keys()}
            frames = [
                _read_frames(path, file, number, with_frames=with_frames)
                for number in range(len(capture.cameras))
            ]
            samples = TaskSamples(
                suite=metadata["suite"],
                index=int(metadata["index"]),
                instruction=metadata["instruction"],
                frames=frames[0],
                further_frames=tuple(frames[1:]),
                actions=file.get_tensor("actions"),
                episodes=file.get_tensor("episodes"),
                poses=file.get_tensor("poses"),
                pose_names=tuple(json.loads(metadata["pose_names"])),
                motion=_read_motion(file),
                **{name: file.get_tensor(name) for name in further},
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} can't be read: {error!r}; make it anew") from error
    if samples.succeeded is None:
        _check_demonstrated(path, samples.actions)
    return samples


def _read_frames(
    path: Path,
    file: Any,  # noqa: ANN401 - safetensors' handle is untyped
    camera: int,
    *,
    with_frames: bool,
) -> Frames:
    """Those of a camera, by its number in the capture; or only where each begins."""
    name, places = _frame_arrays(camera)
    (size,) = file.get_slice(name).get_shape()
    offsets = file.get_tensor(places)
    if not _divides(offsets, size):
        raise DatasetError(f"{path}: its frames are damaged; make it anew")
    return Frames(file.get_tensor(name) if with_frames else np.zeros(0, np.uint8), offsets)


def _divides(offsets: NDArray[np.int64], size: int) -> bool:
    """Whether offsets divide a buffer of so many bytes into frames."""
    return bool(
        offsets.ndim == 1
        and len(offsets)
        and offsets[0] == 0
        and offsets[-1] == size
        and (np.diff(offsets) >= 0).all()
    )


def _check_demonstrated(path: Path, actions: NDArray[np.float32]) -> None:
    """Refuses actions [N, 7] that no demonstration can have. A policy's own may be anything: the
    simulator rounds and cuts them.
    """
    if not len(actions):
        return
    gripper = actions[:, 6]
    if not np.isclose(gripper, np.round(np.clip(gripper, 0, 1)), atol=1e-3).all():
        raise DatasetError(
            f"{path} has gripper commands that are neither 0 (closed) nor 1 (open), from "
            f"{gripper.min():g} to {gripper.max():g}: convert the demonstrations again"
        )
    if (largest := float(np.abs(actions[:, :6]).max())) > LARGEST_ACTION:
        raise DatasetError(
            f"{path} has actions of up to {largest:.3g}, though the arm executes 1 at most: "
            "convert the demonstrations again"
        )


def _read_motion(file: Any) -> Motion | None:  # noqa: ANN401 - safetensors' handle is untyped
    names = [name for name in file.keys() if name.startswith("motion_")]  # noqa: SIM118
    if not names:
        return None
    return Motion(**{name.removeprefix("motion_"): file.get_tensor(name) for name in names})
