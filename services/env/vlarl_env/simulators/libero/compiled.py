"""Scenes as MuJoCo compiled them, kept in the cache folder for the next simulator that builds them.

MuJoCo decodes the textures and reads the meshes of each scene anew: half of a construction. What it
makes of them follows from the XML, the files that are named there, and MuJoCo itself. A kept model
is that one to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import mujoco
import numpy as np

_LOG = logging.getLogger(__name__)
_ENDING = ".mjb"
_CHECKSUM_BYTES = 4
_FORMAT = f"1:{mujoco.mj_versionString()}"
"""Part of each name: what is made otherwise must be named otherwise."""

MOST_BYTES = 2**30
"""Of all that is kept: ten to fifteen `fast` scenes. A pod's /tmp may have twice as much."""
MOST_OF_DISK = 0.1
"""Of the folder's disk, which may be memory."""

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
        status = Path(name).stat()
        found.update(f"{name}:{status.st_size}:{status.st_mtime_ns}".encode())
    return found.hexdigest()[:24]


def _kept(path: Path) -> mujoco.MjModel | None:
    """None: there is none, or it isn't whole."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    checksum, encoded = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if not encoded or int.from_bytes(checksum, "little") != zlib.crc32(encoded):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # The longest unused goes first.
    return mujoco.MjModel.from_binary_path("scene.mjb", {"scene.mjb": bytes(encoded)})


def _keep(model: mujoco.MjModel, path: Path) -> None:
    """Writes it, and takes away what was longest unused where there would be too much."""
    size = mujoco.mj_sizeModel(model)
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    most = min(MOST_BYTES, int(disk.total * MOST_OF_DISK))
    if size > most or disk.free < 2 * size:
        return
    _make_room(folder, most - size)
    encoded = np.empty(size, np.uint8)
    mujoco.mj_saveModel(model, None, encoded)
    # Renamed into place: several simulators may compile the same scene at once.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        try:
            part.write(zlib.crc32(encoded.data).to_bytes(_CHECKSUM_BYTES, "little"))
            part.write(encoded.data)
            part.flush()
        except OSError:  # The disk is full, for others too.
            Path(part.name).unlink(missing_ok=True)
            raise
    os.replace(part.name, path)  # noqa: PTH105 - atomic, and pathlib's does the same


def _make_room(folder: Path, most: int) -> None:
    """Removes files until the others have at most so many bytes."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # Others make room, too.
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
