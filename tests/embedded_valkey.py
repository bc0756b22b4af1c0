"""A Valkey of a test's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vlarl.launch.valkey import valkey_command


def start_valkey(directory: Path, socket: Path) -> subprocess.Popen[bytes]:
    """Starts the server; it answers once its socket exists. The caller ends the process."""
    command = valkey_command(directory, socket)
    with (directory / "valkey.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
