"""One service of the stack: a process, its log, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlarl import parent_death
from vlarl.errors import FatalError
from vlarl.terminal import say

# Starts in 15 ms: nothing of the environment is needed.
_TETHER = [sys.executable, "-I", "-S", parent_death.__file__]

_LAST_WORDS_SECONDS = 2.0


class ServiceDiedError(FatalError):
    """A service ended on its own; the message names it, how it ended and its last words."""


class Service:
    """A child process in a process group of its own, its output in a log file.

    Lines that look like warnings or errors are repeated on this terminal behind the service's
    name; `foreground` gives the process this terminal instead.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        foreground: bool = False,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Starts nothing yet.

        Args:
            name: for people.
            command: the program and its arguments.
            log: receives its output.
            environment: its variables; none: this process's.
            foreground: whether it gets this terminal instead of a log.
            descriptors: of this process, that it gets too.
        """
        self.name = name
        self._command = command
        self._log = log
        self._environment = environment
        self._foreground = foreground
        self._descriptors = tuple(descriptors)
        self._tail: deque[str] = deque(maxlen=8)
        self._reader: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process, which ends with this one, however that dies."""
        # Cancelled halfway, asyncio would kill the process, and nobody could stop it gently.
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await starting
            raise

    async def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ if self._environment is None else self._environment)
        if self._foreground:
            await self._execute(environment, None)
            return
        environment["PYTHONIOENCODING"] = "utf-8"  # its log's, whatever this terminal's is
        # A pipe of our own: asyncio would take the process for alive as long as anybody, such as
        # an engine that a killed server has left behind, holds its output open.
        ours, theirs = os.pipe()
        self._reader = asyncio.create_task(self._copy_output(ours))
        try:
            await self._execute(environment, theirs)
        finally:
            os.close(theirs)

    async def _execute(self, environment: Mapping[str, str], output: int | None) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(*_TETHER, str(os.getpid()), *self._command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=None if self._foreground else asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=self._descriptors,
        )

    async def _copy_output(self, pipe: int) -> None:
        output = asyncio.StreamReader(limit=1 << 20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(pipe, "rb", 0)
        )
        with contextlib.closing(transport), self._log.open("ab", buffering=0) as log:
            kept = True
            while line := await _next_line(output):
                # A service must not die of what nobody can write down.
                try:
                    log.write(line)
                    kept = True
                except OSError as error:
                    if kept:
                        say(f"[{self.name}] its log {self._log}: {error.strerror}", stderr=True)
                    kept = False
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text)
                if " ERROR " in text or " CRITICAL " in text:
                    say(f"[{self.name}] {text}", stderr=True)

    @property
    def alive(self) -> bool:
        """Whether its process has been started and runs."""
        return self.process is not None and self.process.returncode is None

    async def wait(self) -> int:
        """Exit code of the process; negative: the signal that ended it."""
        assert self.process is not None  # noqa: S101 - called after start
        return await self.process.wait()

    async def obituary(self) -> ServiceDiedError:
        """Why the service is dead, in a sentence and its last lines."""
        return ServiceDiedError(f"the {self.name} service died {await self.epitaph()}")

    async def epitaph(self) -> str:
        """How the process ended, where its log is, and its last lines."""
        code = await self.wait()
        await self._end_of_group()
        ended = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        words = "\n  ".join(["", *self._tail]) if self._tail else ""
        return f"({ended}); its log: {self._log}{words}"

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, and after the grace SIGKILL, to the process and all its children."""
        if self.process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), grace_seconds)
        await self._end_of_group()

    async def _end_of_group(self) -> None:
        """Kills what is left of the process group, and reads its output to the end."""
        # The group outlives its leader where that left children behind, e.g. because it was killed.
        self._signal(signal.SIGKILL, whole_group=True)
        await self.wait()
        if self._reader:
            # A child that has left the group may hold the output open.
            await asyncio.wait([self._reader], timeout=_LAST_WORDS_SECONDS)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def _signal(self, number: signal.Signals, *, whole_group: bool = False) -> None:
        assert self.process is not None  # noqa: S101 - called after start
        with contextlib.suppress(ProcessLookupError):
            if whole_group:
                os.killpg(self.process.pid, number)
            elif self.process.returncode is None:
                self.process.send_signal(number)


async def _next_line(output: asyncio.StreamReader) -> bytes:
    """The next line, or what there is of one that is too long; empty at the end."""
    try:
        return await output.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await output.readexactly(error.consumed)
