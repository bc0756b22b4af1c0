"""The workers of a job: processes of their own, each with one order in hand."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from vlarl.errors import FatalError
from vlarl_env.devices import egl_devices
from vlarl_env.simulators.libero.headless import cache_folder, headless_environment
from vlarl_jobs.demonstrations.messages import Answer, Settings

Order = TypeVar("Order", bound=BaseModel)


class WorkerDiedError(FatalError):
    """A worker ended before it had answered."""


async def run_crew(
    settings: Settings,
    processes: int,
    next_order: Callable[[], Order | None],
    on_answer: Callable[[Order, Answer], None],
) -> None:
    """Carries out orders until there are no more. Leaves no process behind.

    Args:
        settings: What all orders share.
        processes: Number of workers.
        next_order: Called when a worker is free; none: it may end.
        on_answer: Called with what became of each order.

    Raises:
        WorkerDiedError: a worker ended on its own; its last words are on standard error.
    """
    workers = [_Worker(number) for number in range(processes)]
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.run(settings, next_order, on_answer))
    except ExceptionGroup as errors:
        # Not by `except*`, which may wrap what is raised in a group again.
        fatal = errors.subgroup(FatalError)
        raise errors if fatal is None else _first(fatal) from None
    finally:
        for worker in workers:
            worker.kill()


def _first(errors: ExceptionGroup[FatalError]) -> FatalError:
    """The first that no group is."""
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, ExceptionGroup) else found


class _Worker:
    """One process."""

    def __init__(self, number: int) -> None:
        devices = egl_devices(os.environ)
        device = devices[number % len(devices)] if devices else None
        environment = headless_environment(os.environ, device)
        # MuJoCo writes MUJOCO_LOG.TXT into the working directory.
        folder = cache_folder() / "simulators"
        folder.mkdir(exist_ok=True)
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "vlarl_jobs.demonstrations.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
            )

    async def run(
        self,
        settings: Settings,
        next_order: Callable[[], Order | None],
        on_answer: Callable[[Order, Answer], None],
    ) -> None:
        reader, writer = await asyncio.open_connection(sock=self._ours)
        try:
            writer.write(settings.model_dump_json().encode() + b"\n")
            while (order := next_order()) is not None:
                writer.write(order.model_dump_json().encode() + b"\n")
                on_answer(order, await self._answer(reader, order))
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, order: BaseModel) -> Answer:
        try:
            line = await reader.readline()
        except OSError:
            line = b""
        if not line:
            raise WorkerDiedError(
                f"a worker ended at {order.model_dump_json(exclude_none=True)}; "
                "its last words are above"
            )
        return Answer.model_validate_json(line)

    def kill(self) -> None:
        """Ends the process, whatever it does, and reaps it."""
        self._process.kill()
        self._process.wait()
