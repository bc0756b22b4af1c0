"""Rank 0 leads, the others follow: every batch is learned from by all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from safetensors.torch import load, save
from torch import Tensor

from vlarl.learning.node import NodeMemory
from vlarl.learning.ranks import Ranks
from vlarl_trainer.batch import Experience
from vlarl_trainer.learner import Learner, Snapshot

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_GO_BACK = b"go back"
"""In place of an experience, which is longer: a checkpoint's tensors follow."""


class LeadingRank:
    """Rank 0's learner, on a thread of its own so that the event loop stays free."""

    def __init__(self, learner: Learner, ranks: Ranks) -> None:
        self._learner = learner
        self._ranks = ranks
        self._memory: NodeMemory | None = None
        self._thread = ThreadPoolExecutor(1, "learner")

    async def learn(self, experience: Experience) -> tuple[dict[str, float], Snapshot]:
        """Has all ranks learn; returns the metrics and all that has been learned so far.

        experience: of several ranks, with frames in a file of this process.
        """
        return await self._in_thread(self._learn, experience)

    def _learn(self, experience: Experience) -> tuple[dict[str, float], Snapshot]:
        if self._memory is not None:
            if experience.frames is None:
                raise ValueError("several ranks need frames in a file of rank 0, not in messages")
            self._ranks.broadcast_bytes(experience.to_bytes())
            self._memory.share(experience.frames.file)
        return self._learner.learn(experience), self._learner.snapshot()

    async def start(self, tensors: dict[str, Tensor] | None) -> Snapshot:
        """Has all ranks take a checkpoint's tensors over, if there is one."""
        return await self._in_thread(self._start, tensors)

    def _start(self, tensors: dict[str, Tensor] | None) -> Snapshot:
        snapshot = _restore(self._learner, self._ranks, tensors)
        if self._ranks.size > 1:
            self._memory = NodeMemory(self._ranks)
        return snapshot

    async def go_back(self, tensors: dict[str, Tensor]) -> Snapshot:
        """Has all ranks take an earlier checkpoint's tensors over, between two iterations."""
        return await self._in_thread(self._go_back, tensors)

    def _go_back(self, tensors: dict[str, Tensor]) -> Snapshot:
        if self._ranks.size > 1:
            self._ranks.broadcast_bytes(_GO_BACK)
        return _restore(self._learner, self._ranks, tensors)

    async def dismiss(self) -> None:
        """Ends the followers' work."""
        await self._in_thread(self._ranks.broadcast_bytes, b"")
        self._thread.shutdown()

    async def _in_thread(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, call, *arguments)


def follow(learner: Learner, ranks: Ranks) -> None:
    """What every other rank does, until rank 0 ends it."""
    _restore(learner, ranks, None)
    memory = NodeMemory(ranks)
    while encoded := ranks.broadcast_bytes():
        if encoded == _GO_BACK:
            _restore(learner, ranks, None)
            continue
        learner.learn(Experience.from_bytes(encoded, memory.share(None)))
        learner.snapshot()


def _restore(learner: Learner, ranks: Ranks, tensors: dict[str, Tensor] | None) -> Snapshot:
    """Rank 0's tensors, taken over by every rank."""
    if ranks.size > 1:
        encoded = ranks.broadcast_bytes(save(tensors) if tensors else b"")
        tensors = load(encoded) if encoded else None
    if tensors:
        learner.restore(tensors)
    return learner.snapshot()
