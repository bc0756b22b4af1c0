"""Where a run stands, shared by the loop, which changes it, and the service, which shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from vlarl.trainer.v1 import trainer_pb2
from vlarl.weights.adapter import Adapter

_IDLE = {
    trainer_pb2.RUN_STATE_STARTING,
    trainer_pb2.RUN_STATE_PAUSED,
    trainer_pb2.RUN_STATE_DONE,
}


class RunStatus:
    """One run's state, history and wishes from outside. Lives on one event loop."""

    def __init__(self, run_id: str, iterations: int) -> None:
        """iterations: how many are wanted."""
        self.run_id = run_id
        self.iterations = iterations
        self.state: trainer_pb2.RunState.ValueType = trainer_pb2.RUN_STATE_STARTING
        self.history: list[trainer_pb2.Iteration] = []
        self.adapter: Adapter | None = None
        """Published last."""
        self.outstanding = 0
        self.checkpoint: Path | None = None
        """Written last."""
        self._running = asyncio.Event()
        self._running.set()
        self._changed = asyncio.Condition()

    async def enter(self, state: trainer_pb2.RunState.ValueType) -> None:
        """The loop does something else now."""
        self.state = state
        await self._notify()

    async def complete(self, iteration: trainer_pb2.Iteration) -> None:
        """The loop completed an iteration."""
        self.history.append(iteration)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until_running(self) -> None:
        """Waits while the run is paused."""
        if not self._running.is_set():
            await self.enter(trainer_pb2.RUN_STATE_PAUSED)
            await self._running.wait()

    def pause(self) -> None:
        """The loop stops before its next iteration."""
        self._running.clear()

    def resume(self) -> None:
        """The loop goes on."""
        self._running.set()

    async def watch(self, start: int) -> AsyncIterator[trainer_pb2.Iteration]:
        """Iterations from `start`, as they are completed; ends with the run."""
        sent = 0
        while True:
            for iteration in self.history[sent:]:
                sent += 1
                if iteration.iteration >= start:
                    yield iteration
            async with self._changed:
                if sent < len(self.history):
                    continue
                if self.state == trainer_pb2.RUN_STATE_DONE:
                    return
                await self._changed.wait()

    async def next_checkpoint(self) -> Path | None:
        """The checkpoint of the iteration in progress, or the last one if there is none; None
        where nothing has been completed yet.
        """
        before = len(self.history)
        async with self._changed:
            await self._changed.wait_for(lambda: self.state in _IDLE or len(self.history) > before)
        return self.checkpoint
