"""Files of demonstrations as LIBERO's are, and as people change them: made from one recording."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

RECORDED = Path(__file__).parent / "golden" / "demonstrations.hdf5"
TASK = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"

Edit = Callable[[Any], object]
"""Changes a file's group `data`."""


def variant(folder: Path, edit: Edit = lambda data: None, name: str = f"{TASK}_demo.hdf5") -> Path:
    """The recording as LIBERO's are, with a change."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(RECORDED, path)
    with h5py.File(path, "r+") as file:
        data = file["data"]
        for key in [*data.attrs]:
            if key not in ("bddl_file_name", "problem_info", "env_args"):
                del data.attrs[key]
        for demo in data.values():
            del demo["expert_actions"], demo.attrs["success"], demo.attrs["placement_seed"]
        edit(data)
    return path


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], *demos: str) -> Edit:
    """Changes an array of some demonstrations, or of all."""

    def edit(data: Any) -> None:  # noqa: ANN401 - h5py has no types
        for demo in demos or [*data]:
            array = change(data[demo][name][()])
            del data[demo][name]
            data[demo][name] = array

    return edit


def acted(movement: float = 1, gripper: Callable[[np.ndarray], np.ndarray] = np.copy) -> Edit:
    """Changes the actions."""
    return changed("actions", lambda a: np.hstack([movement * a[:, :6], gripper(a[:, 6:])]))


def without_attributes(data: Any) -> None:  # noqa: ANN401
    for key in [*data.attrs]:
        del data.attrs[key]
