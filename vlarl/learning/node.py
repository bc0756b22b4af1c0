"""Bytes of rank 0 for all ranks: once in the memory of each node, and sent once to each.

    rank 0 --memory file--> ranks of its node
       |
       +--gloo--> first rank of another node --memory file--> the others there

Ranks are of one node where one may open the other's memory files. Each tries it, so nothing has to
be known of machines and containers.
"""

from __future__ import annotations

import os
import secrets

import torch
import torch.distributed as dist

from vlarl.errors import FatalError
from vlarl.learning.memory_file import Bytes, MemoryFile, map_memory_file, open_memory_file
from vlarl.learning.ranks import PATIENCE, Ranks

_CHUNK = 64 << 20
"""Bytes that are sent at once; gloo buffers what it sends."""


class NodeMemory:
    """What rank 0 of several shares with the others."""

    def __init__(self, ranks: Ranks) -> None:
        """Finds the nodes out; every rank must come here at the same time."""
        self._ranks = ranks
        self._first_here, firsts = _find_nodes(ranks)
        leaders = sorted(set(firsts))
        # Every group is made by all ranks, in the same order.
        nodes = {
            leader: _group([rank for rank, first in enumerate(firsts) if first == leader])
            for leader in leaders
        }
        self._node = nodes[self._first_here]
        self._leaders = _group(leaders) if len(leaders) > 1 else None

    def share(self, file: MemoryFile | None) -> Bytes:
        """The bytes of rank 0's file, on every rank. They are there until nobody has the array,
        whether the file is closed or not.

        file: rank 0's; the others have none.

        Raises:
            FatalError: a rank of this node can't open it any more.
        """
        ranks = self._ranks
        size = int(ranks.broadcast(torch.tensor([file.size if file else 0])))
        if ranks.rank != self._first_here:
            return self._opened(size)
        if file is None:
            file = MemoryFile()
            file.make_room(size)
        here = file.mapped()
        if self._leaders is not None:
            for start in range(0, size, _CHUNK):
                part = torch.from_numpy(here[start : start + _CHUNK])
                dist.broadcast(part, src=0, group=self._leaders)
        where = torch.tensor([os.getpid(), file.descriptor])
        dist.broadcast(where, src=ranks.rank, group=self._node)
        # Not closed before all have opened it.
        dist.barrier(group=self._node)
        return here

    def _opened(self, size: int) -> Bytes:
        """The bytes in the file of this node's first rank."""
        where = torch.empty(2, dtype=torch.int64)
        dist.broadcast(where, src=self._first_here, group=self._node)
        pid, descriptor = where.tolist()
        here = map_memory_file(pid, descriptor, size)
        if here is None:
            raise FatalError(
                f"rank {self._ranks.rank} can't open the memory of rank {self._first_here} any "
                "more: start the trainer again"
            )
        dist.barrier(group=self._node)
        return here


def _find_nodes(ranks: Ranks) -> tuple[int, list[int]]:
    """The first rank of this rank's node, and that of every rank's."""
    token = secrets.token_bytes(8)
    shown = MemoryFile()
    shown.append([token])
    number = int.from_bytes(token, "little", signed=True)
    mine = torch.tensor([[os.getpid(), shown.descriptor, number]])
    everyone = ranks.gather(mine, ranks.size).tolist()
    found = (rank for rank, other in enumerate(everyone) if _is_there(*other))
    first = next(found, ranks.rank)
    firsts = ranks.gather(torch.tensor([first]), ranks.size).tolist()
    shown.close()
    return first, firsts


def _is_there(pid: int, descriptor: int, number: int) -> bool:
    """Whether this process may open a file that has this number in it."""
    opened = open_memory_file(pid, descriptor)
    if opened is None:
        return False
    with os.fdopen(opened, "rb") as file:
        return int.from_bytes(file.read(8), "little", signed=True) == number


def _group(members: list[int]) -> dist.ProcessGroup:
    """These ranks as a group, or what stands for it on a rank that isn't one of them."""
    group: dist.ProcessGroup = dist.new_group(members, timeout=PATIENCE, backend="gloo")
    return group
