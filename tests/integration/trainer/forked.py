"""Programs of tests, in processes of their own that needn't load torch and the trainer again.

To load them takes longer than most of what is tested, so one process does it once, and every
program is forked from that. Nothing but imports has happened in it: no thread, no channel, no run.
tests/e2e starts its programs with the real `vlarl up` and torchrun.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.util import get_temp_dir
from pathlib import Path

from vlarl.launch.supervisor import free_address

# Called here, before pytest sets a folder for the session's temporary files, so that the fork
# server's own folder isn't deleted with that one.
get_temp_dir()
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [f"tests.integration.trainer.{name}" for name in ("trainer_program", "sft_program")]
)


class Program:
    """`main` in one process, or in several ranks, which know of one another what torchrun says.

    main: of a module that can be imported.
    arguments: of `main`.
    log: the file that gets all output.
    ranks: how many processes; where one fails, all end.

    Environment and working folder are those that the fork server began with.
    """

    def __init__(
        self, main: Callable[..., None], *arguments: object, log: Path, ranks: int = 1
    ) -> None:
        host, port = free_address().split(":")
        self._processes = []
        for rank in range(ranks):
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            told |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": host, "MASTER_PORT": port}
            environment = {key: str(value) for key, value in told.items()} if ranks > 1 else {}
            process = _CONTEXT.Process(target=_run, args=(main, arguments, log, environment))
            process.start()
            self._processes.append(process)

    @property
    def returncode(self) -> int | None:
        """That of the first that failed; a signal's is negative. None while one lives."""
        codes = [process.exitcode for process in self._processes]
        if failed := [code for code in codes if code]:
            self.kill()
            return failed[0]
        return None if None in codes else 0

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.returncode) is None:
            await asyncio.sleep(0.02)
        return code

    def join(self, seconds: float) -> int | None:
        """The same, and None where it takes longer."""
        deadline = time.monotonic() + seconds
        while (code := self.returncode) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """Ends it at once; returns when it is gone."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def terminate(self) -> None:
        """Asks it to end."""
        for process in self._processes:
            process.terminate()


def _run(
    main: Callable[..., None], arguments: tuple[object, ...], log: Path, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for standard in (1, 2):
        os.dup2(output, standard)
    main(*arguments)
