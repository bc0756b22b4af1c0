"""Bytes that processes of one machine share, in files that lie in memory and have no name."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAME = "vlarl"
"""Seen in /proc only."""

Bytes = NDArray[np.uint8]


class MemoryFile:
    """A file that is gone with the last process that has it open or mapped, however that ends.

    It counts as memory of the process that wrote it, and is bound by no size of /dev/shm.
    """

    def __init__(self) -> None:
        self.size = 0
        self.descriptor = -1
        self.descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)

    def append(self, parts: Sequence[bytes]) -> int:
        """Writes these one after another; returns where the first of them begins."""
        start = self.size
        left = memoryview(b"".join(parts))
        while left:
            written = os.pwrite(self.descriptor, left, self.size)
            self.size += written
            left = left[written:]
        return start

    def make_room(self, size: int) -> None:
        """Gives the file its size; what was not there is zeros."""
        os.ftruncate(self.descriptor, size)
        self.size = size

    def mapped(self) -> Bytes:
        """Its bytes [size], to be read and written, for as long as somebody has the array."""
        return _mapped(self.descriptor, self.size, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self) -> None:
        """Nobody else can open it any more; what is mapped stays. May be repeated."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()


def open_memory_file(pid: int, descriptor: int) -> int | None:
    """A descriptor, to be read from, of another process's `MemoryFile`; None where there is none
    that this process may open.
    """
    path = Path(f"/proc/{pid}/fd/{descriptor}")
    try:
        # On another machine the number may be that of anything, which even to open might block.
        if not str(path.readlink()).startswith(f"/memfd:{_NAME} "):
            return None
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def map_memory_file(pid: int, descriptor: int, size: int) -> Bytes | None:
    """The bytes [size] of another process's `MemoryFile`, read-only; None as above."""
    opened = open_memory_file(pid, descriptor)
    if opened is None:
        return None
    try:
        return _mapped(opened, size, mmap.PROT_READ)
    finally:
        os.close(opened)


def _mapped(descriptor: int, size: int, protection: int) -> Bytes:
    if not size:  # which can't be mapped
        return np.zeros(0, np.uint8)
    return np.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection), np.uint8)
