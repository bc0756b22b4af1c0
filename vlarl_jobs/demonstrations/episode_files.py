"""What is finished of a job, one file an episode, so that a job killed at any time goes on.

A part is written aside and renamed: it is whole or not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlarl.data.dataset import Frames
from vlarl_jobs.demonstrations.episodes import Episode


@dataclass(frozen=True)
class RenderedEpisode:
    """M samples of an episode."""

    frames: Frames
    actions: npt.NDArray[np.float32]
    """[M, 7], in the units of the dataset."""
    poses: npt.NDArray[np.float32]
    """[M, P], metres."""
    pose_names: tuple[str, ...]
    starts: npt.NDArray[np.int32]
    """[M], the control step before which each frame is taken."""
    robot_states: npt.NDArray[np.float32]
    """[T, 9], at all control steps; [0, 9] where they weren't recorded."""
    placement_seed: int | None
    """None: unknown."""
    further_frames: tuple[Frames, ...]
    """Of each further camera."""
    proprio: npt.NDArray[np.float32]
    """[M, 8], see `Scene.proprioception`."""


def save_episode(path: Path, episode: Episode, placement_seed: int | None) -> None:
    """Keeps a played episode and the seed of its placement."""
    _save(
        path,
        states=episode.states,
        robot_states=episode.robot_states,
        actions=episode.actions,
        expert_actions=episode.expert_actions,
        success=np.array(episode.success),
        placement_seed=np.array(placement_seed or 0, dtype=np.int64),
    )


def load_episode(path: Path) -> Episode:
    """A kept episode."""
    with np.load(path, allow_pickle=False) as arrays:
        return Episode(
            states=arrays["states"],
            robot_states=arrays["robot_states"],
            actions=arrays["actions"],
            expert_actions=arrays["expert_actions"],
            success=bool(arrays["success"]),
            placement_seed=int(arrays["placement_seed"]),
        )


def save_rendered(path: Path, rendered: RenderedEpisode) -> None:
    """Keeps a rendered episode."""
    seed = [] if rendered.placement_seed is None else [rendered.placement_seed]
    _save(
        path,
        frames=rendered.frames.buffer,
        offsets=rendered.frames.offsets,
        actions=rendered.actions,
        poses=rendered.poses,
        pose_names=np.array(rendered.pose_names, dtype=np.str_),
        starts=rendered.starts,
        robot_states=rendered.robot_states,
        placement_seed=np.array(seed, dtype=np.int64),
        proprio=rendered.proprio,
        **_further_arrays(rendered.further_frames),
    )


def _further_arrays(cameras: Sequence[Frames]) -> dict[str, npt.NDArray[np.generic]]:
    found: dict[str, npt.NDArray[np.generic]] = {}
    for number, frames in enumerate(cameras, start=1):
        found |= {f"frames_{number}": frames.buffer, f"offsets_{number}": frames.offsets}
    return found


def load_rendered(path: Path) -> RenderedEpisode:
    """A kept rendered episode."""
    with np.load(path, allow_pickle=False) as arrays:
        return RenderedEpisode(
            frames=Frames(arrays["frames"], arrays["offsets"]),
            actions=arrays["actions"],
            poses=arrays["poses"],
            pose_names=tuple(str(name) for name in arrays["pose_names"]),
            starts=arrays["starts"],
            robot_states=arrays["robot_states"],
            placement_seed=next(iter(arrays["placement_seed"].tolist()), None),
            further_frames=tuple(
                Frames(arrays[f"frames_{number}"], arrays[f"offsets_{number}"])
                for number in range(1, 1 + sum(name.startswith("frames_") for name in arrays.files))
            ),
            proprio=arrays["proprio"],
        )


def _save(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
