"""Which GPU each simulator draws on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def egl_devices(environment: Mapping[str, str], device_folder: Path = Path("/dev")) -> list[int]:
    """Numbers of the GPUs that simulators may draw on; empty: software rendering.

    Those that `CUDA_VISIBLE_DEVICES` names by number, else all NVIDIA devices. EGL counts the
    devices that the container sees, so that names (GPU-...) say only how many there are.
    """
    present = sum(
        re.fullmatch(r"nvidia\d+", entry.name) is not None for entry in device_folder.iterdir()
    )
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(range(present))
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    if all(name.isdigit() for name in names):
        return [int(name) for name in names if int(name) < present]
    return list(range(min(len(names), present)))
