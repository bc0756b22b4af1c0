"""Scenes as MuJoCo compiled them, kept in the cache folder for the next simulator that builds them.

MuJoCo decodes the textures and reads the meshes of each scene anew: half of a construction. What it
makes of them follows from the XML, the files that are named there, and MuJoCo itself. A kept model
is that one to the bit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import re
import shutil
import time
import zlib
from pathlib import Path

import mujoco
import numpy as np

from vlarl_env.simulators.libero.kept_files import PARTIAL, identity, put_in_place

_LOG = logging.getLogger(__name__)
_ENDING = ".mjb"
_CHECKSUM_BYTES = 4
_FORMAT = f"1:{mujoco.mj_versionString()}:{platform.machine()}"
"""Part of each name: what is made otherwise must be named otherwise."""

MOST_BYTES = 2**30
"""Of all that is kept: ten to fifteen `fast` scenes, or five `faithful` ones. A pod's /tmp may have
twice as much."""
MOST_OF_DISK = 0.1
"""Of the folder's disk, which may be memory."""
UNUSED_SECONDS = 86400.0
"""From then on a scene makes room. Were it the longest unused, whoever takes turns through more
scenes than there is room for would never find one."""

_NAMED_FILE = re.compile(r'\bfile="([^"]+)"')


def compiled(xml: str, cache: Path) -> mujoco.MjModel:
    """The model of a scene, as ``MjModel.from_xml_string`` makes it.

    Args:
        xml: the scene; files are named by absolute paths.
        cache: the cache folder.

    Raises:
        ValueError: MuJoCo can't build it.
    """
    try:
        path = cache / "scenes" / f"{_key(xml)}{_ENDING}"
    except OSError:  # a file is missing, as MuJoCo will say
        return mujoco.MjModel.from_xml_string(xml)
    if (kept := _kept(path)) is not None:
        return kept
    model = mujoco.MjModel.from_xml_string(xml)
    try:
        _keep(model, path)
    except OSError as error:
        _LOG.warning("a compiled scene isn't kept: %s", error)
    return model


def _key(xml: str) -> str:
    found = hashlib.sha256(f"{_FORMAT}:{xml}".encode())
    for name in sorted(set(_NAMED_FILE.findall(xml))):
        found.update(identity(Path(name)).encode())
    return found.hexdigest()[:24]


def _kept(path: Path) -> mujoco.MjModel | None:
    """None: there is none, or it isn't whole; then it is gone."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    checksum, encoded = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    with contextlib.suppress(OSError):
        if encoded and int.from_bytes(checksum, "little") == zlib.crc32(encoded):
            os.utime(path)
            # MuJoCo may refuse another build's.
            with contextlib.suppress(ValueError, mujoco.FatalError):
                return mujoco.MjModel.from_binary_path("scene.mjb", {"scene.mjb": bytes(encoded)})
        path.unlink(missing_ok=True)
    return None


def _keep(model: mujoco.MjModel, path: Path) -> None:
    """Writes it where there is room for it, and no other process of this machine is at it."""
    size = mujoco.mj_sizeModel(model)
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() and _has_room(folder, size):
            _write(model, size, path)


def _has_room(folder: Path, size: int) -> bool:
    """Whether so many bytes more may be kept, once what has long been unused is gone."""
    kept = 0
    for path in folder.glob(f"*{PARTIAL}"):  # Of one that was killed.
        path.unlink()
    for path in folder.glob(f"*{_ENDING}"):
        status = path.stat()
        if status.st_mtime < time.time() - UNUSED_SECONDS:
            path.unlink()
        else:
            kept += status.st_size
    disk = shutil.disk_usage(folder)
    return kept + size <= min(MOST_BYTES, disk.total * MOST_OF_DISK) and 2 * size < disk.free


def _write(model: mujoco.MjModel, size: int, path: Path) -> None:
    encoded = np.empty(size, np.uint8)
    mujoco.mj_saveModel(model, None, encoded)
    with put_in_place(path) as file:
        file.write(zlib.crc32(encoded.data).to_bytes(_CHECKSUM_BYTES, "little"))
        file.write(encoded.data)
