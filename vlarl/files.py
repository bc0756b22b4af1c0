"""Files that other users may read, and files and folders that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from vlarl.disk import room_for

_REPLACED = ".replaced.partial"


def share(path: Path) -> None:
    """Gives a file the permissions that `open` would have given it.

    safetensors writes files that their owner alone may read, but a service often runs as another
    user than the one who made its checkpoint.
    """
    plain = path.with_name(f".{path.name}.mode")
    plain.touch()
    try:
        path.chmod(stat.S_IMODE(plain.stat().st_mode))
    finally:
        plain.unlink()


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole: a reader sees what was there before, or all of the text."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextlib.contextmanager
def durable_folder(final: Path, needed: int = 0) -> Iterator[Path]:
    """A folder to fill that appears under its final name once it is complete and forced to disk.

    What was there under that name is replaced, once that is so. What an earlier crash or an error
    leaves of it goes: a full disk needs the room. Other folders beside it may be other people's.

    Args:
        final: its name.
        needed: bytes that will be written, where they can be told before.

    Raises:
        DiskFullError: there is no room; nothing else has changed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = _partial(final), _replaced(final)
    for leftover in (replaced, partial):
        if leftover.exists():
            _take_away(leftover)
    with room_for(f"the checkpoint {final.name}", final.parent, needed):
        try:
            partial.mkdir()
            yield partial
            for path in (*partial.rglob("*"), partial):
                force_to_disk(path)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _replace(final, partial)


def tidy(directory: Path) -> None:
    """Takes away what a crash has left of `durable_folder`, and puts back what was to be replaced
    where its successor hadn't taken its place yet. Only for whoever owns the folder.
    """
    for leftover in directory.glob(".*.partial"):
        _take_away(leftover)


def _take_away(leftover: Path) -> None:
    original = leftover.with_name(leftover.name[1:].removesuffix(_REPLACED))
    if leftover.name.endswith(_REPLACED) and not original.exists():
        leftover.rename(original)
    else:
        shutil.rmtree(leftover)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}{_REPLACED}")


def _replace(final: Path, partial: Path) -> None:
    if final.exists():
        replaced = _replaced(final)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    force_to_disk(final.parent)


def force_to_disk(path: Path) -> None:
    """Returns when a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
