"""A full disk: noticed before a large file is begun, and one sentence where it comes after all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vlarl.errors import FatalError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PLENTY = 2**30
"""Bytes: a disk that has them free isn't the one that was full."""


class DiskFullError(FatalError):
    """There is no room for what had to be written; the message says where, and how much it is."""


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that a disk, or somebody's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors has an error of its own, and the system's number in its text alone.
    return any(f"(os error {number})" in str(error) for number in _FULL)


@contextlib.contextmanager
def room_for(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Makes sure that there is room for what is written into a folder meanwhile.

    The system's word on free space isn't the last one: it knows nothing of quotas, and others
    write, too. So the block's own errors are told in the same words.

    Args:
        what: what is written, for the message: "a checkpoint".
        folder: where to; it is there.
        needed: bytes; 0: nobody knows before.

    Raises:
        DiskFullError: there is no room.
    """
    if shutil.disk_usage(folder).free < needed:
        raise DiskFullError(_sentence(what, folder, needed))
    with explained(folder, what, needed):
        yield


@contextlib.contextmanager
def explained(folder: Path | None = None, what: str = "", needed: int = 0) -> Iterator[None]:
    """Turns the block's errors of a full disk into a DiskFullError; `room_for` has the arguments,
    those that are known.
    """
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        if isinstance(error, OSError) and error.filename:
            folder = Path(os.fsdecode(error.filename)).parent
        # Of all that a block does, not all goes into its folder.
        elif folder is not None and not what and shutil.disk_usage(folder).free > _PLENTY:
            raise DiskFullError(
                f"a disk has no room for what has to be written, and it isn't that of {folder}: "
                "temporary files (TMPDIR) and shared memory (/dev/shm) have theirs"
            ) from error
        raise DiskFullError(_sentence(what, folder, needed)) from error


def _sentence(what: str, folder: Path | None, needed: int) -> str:
    wanted = f" ({size_text(needed)})" if needed else ""
    room = f"has no room for {what or 'what has to be written'}{wanted}"
    if folder is None:
        found = f"a disk {room}"
    else:
        found = f"{folder}: its disk {room}, {size_text(shutil.disk_usage(folder).free)} are free"
    return (
        f"{found}. What was there is untouched: make room on that disk and give the command again, "
        "a run's with --resume"
    )


def size_text(count: int) -> str:
    """Bytes for people: 23 KiB, 1.5 GiB."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {unit}"
    return f"{count} bytes"
