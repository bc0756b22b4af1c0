"""Files of the cache folder that several simulators may make at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = ".part"
"""Ending of files that aren't whole."""


def identity(source: Path) -> str:
    """What a file is told by, so that what was made of it is made anew where it changed.

    Raises:
        OSError: there is none.
    """
    status = source.stat()
    return f"{source}:{status.st_size}:{status.st_mtime_ns}"


@contextmanager
def put_in_place(target: Path) -> Iterator[IO[bytes]]:
    """A file to write that has its name once it is whole; what fails leaves nothing."""
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=PARTIAL, delete=False) as part:
        try:
            yield part
            part.flush()
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    os.replace(part.name, target)  # noqa: PTH105 - atomic, and pathlib's does the same
