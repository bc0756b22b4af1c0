"""Files that other users may read."""

from __future__ import annotations

import stat
from pathlib import Path


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
