"""The simulators of a server, lent out one episode at a time.

    async with pool.slot() as slot:                  # one of N, or wait
        simulator = slot.simulator(task)             # an idle process, best one that knows the task
        observation = await simulator.reset(...)

A process that was lost, or has run its share of episodes, is replaced when its slot is returned,
while the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from vlarl.config import EnvConfig
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.errors import NoSimulatorError, SimulatorError
from vlarl_env.metrics import EnvMetrics
from vlarl_env.process import SimulatorProcess

logger = logging.getLogger(__name__)

_RESPAWN_PAUSES = (0.0, 1.0, 5.0, 15.0)
"""Seconds before each try to start a process; the last one repeats."""


class SimulatorPool:
    """N simulator processes. Use as an async context manager; entering it starts them all.

    Args:
        config: How many, and how each of them works.
        egl_devices: GPUs to draw on, dealt evenly; empty: software rendering.
        metrics: Where replacements and numbers of simulators are counted.

    Raises:
        NoSimulatorError: on entering, where a process doesn't come up.
    """

    def __init__(self, config: EnvConfig, egl_devices: Sequence[int], metrics: EnvMetrics) -> None:
        self._config = config
        self._devices = list(egl_devices)
        self._metrics = metrics
        self._turns = asyncio.Semaphore(
            _concurrent_steps(config, drawing_on_gpus=bool(egl_devices))
        )
        self._free = asyncio.Semaphore(0)
        self._idle: list[_Seat] = []
        self._seats: list[_Seat] = []
        self._replacing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        devices = [
            self._devices[number % len(self._devices)] if self._devices else None
            for number in range(self._config.processes)
        ]
        self._seats = [_Seat(device, self._metrics, self._turns) for device in devices]
        try:
            await asyncio.gather(*(seat.fill(self._config) for seat in self._seats))
        except SimulatorError as error:
            await self._close()
            text = f"no simulator comes up: {error}; the log above has the process's own words"
            raise NoSimulatorError(text) from error
        except BaseException:
            await self._close()
            raise
        for seat in self._seats:
            self._put_back(seat)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(seat.empty() for seat in self._seats))
        self._metrics.simulators.set(0)

    @property
    def pids(self) -> list[int]:
        """Process ids of the simulators that are up."""
        return [seat.process.pid for seat in self._seats if seat.filled]

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """The right to one simulator; waits until one is free, first come, first served.

        A `SimulatorError` that leaves the block is counted by its cause.
        """
        await self._free.acquire()
        slot = Slot(self._idle, self._metrics)
        try:
            yield slot
        except SimulatorError as error:
            self._metrics.restarts.labels(error.cause).inc()
            logger.warning("a simulator %s and is replaced: %s", error.cause, error)
            raise
        finally:
            if slot.seat is None:
                self._free.release()
            else:
                self._metrics.active.dec()
                self._return(slot.seat)

    def _return(self, seat: _Seat) -> None:
        process = seat.process
        if process.alive and process.episodes < self._config.recycle_episodes:
            self._put_back(seat)
            return
        if process.alive:
            self._metrics.restarts.labels("recycled").inc()
            logger.info("simulator %d is recycled after %d episodes", process.pid, process.episodes)
        task = asyncio.create_task(self._replace(seat))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, seat: _Seat) -> None:
        for attempt in itertools.count():
            await asyncio.sleep(_RESPAWN_PAUSES[min(attempt, len(_RESPAWN_PAUSES) - 1)])
            try:
                gone = await seat.empty()
                self._metrics.simulators.set(len(self.pids))
                if not gone:
                    raise SimulatorError(f"process {seat.process.pid} can't be killed")
                await seat.fill(self._config)
            except (SimulatorError, OSError) as error:
                logger.error("a simulator can't be replaced (try %d): %s", attempt + 1, error)
            else:
                break
        self._put_back(seat)

    def _put_back(self, seat: _Seat) -> None:
        self._idle.append(seat)
        self._metrics.simulators.set(len(self.pids))
        self._free.release()


class Slot:
    """The right to one simulator of the pool."""

    def __init__(self, idle: list[_Seat], metrics: EnvMetrics) -> None:
        self._idle = idle
        self._metrics = metrics
        self.seat: _Seat | None = None

    def simulator(self, task: rollout_pb2.Task) -> SimulatorProcess:
        """An idle simulator for this slot: one that has the task loaded, if there is one."""
        if self.seat is not None:
            raise RuntimeError("a slot is good for one simulator")
        # Else the one that was idle longest: its task is the least wanted.
        self.seat = next((seat for seat in self._idle if seat.has_loaded(task)), self._idle[0])
        self._idle.remove(self.seat)
        self._metrics.active.inc()
        return self.seat.process


class _Seat:
    """A place in the pool, with its device, and the process that fills it."""

    def __init__(
        self, egl_device: int | None, metrics: EnvMetrics, turns: asyncio.Semaphore
    ) -> None:
        self._device = egl_device
        self._metrics = metrics
        self._turns = turns
        self._process: SimulatorProcess | None = None

    @property
    def process(self) -> SimulatorProcess:
        """The process of a filled seat."""
        if self._process is None:
            raise RuntimeError("this seat is empty")
        return self._process

    @property
    def filled(self) -> bool:
        """Whether a process that lives sits here."""
        return self._process is not None and self._process.alive

    def has_loaded(self, task: rollout_pb2.Task) -> bool:
        """Whether its process needs no construction for the task."""
        return self.filled and self.process.has_loaded(task.suite, task.index)

    async def fill(self, config: EnvConfig) -> None:
        """Starts a process."""
        self._process = await SimulatorProcess.spawn(
            config, self._device, self._metrics, self._turns
        )

    async def empty(self) -> bool:
        """Ends the process; whether it is gone, so that another may have its memory."""
        if self._process is not None and await self._process.close():
            self._process = None
        return self._process is None


def _concurrent_steps(config: EnvConfig, *, drawing_on_gpus: bool) -> int:
    """How many simulators compute at once.

    More of them than cores would share the cores, end their steps together, ask the policy together
    and leave the cores idle together. In turn, some compute while others wait for their action. One
    more than cores fills the gaps between a step and the next command, and a hung one's place.
    """
    if config.concurrent_steps is not None:
        return config.concurrent_steps
    return config.processes if drawing_on_gpus else len(os.sched_getaffinity(0)) + 1
