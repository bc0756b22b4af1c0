"""Programs that a test runs beside its own server."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.roots import PYTHONPATH

ROOT = Path(__file__).parents[3]


async def run_program(
    *command: str | Path, folder: Path = ROOT, seconds: float = 60, **environment: str
) -> tuple[int, str, str]:
    """Exit code, output and errors of a program, which finds this tree's `vlarl` and its tools.

    Raises:
        TimeoutError: it hasn't ended within `seconds`, and was killed.
    """
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "PATH": tools, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
