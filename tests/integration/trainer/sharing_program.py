"""What each of four ranks of a test in test_trainer_ranks.py runs: two by two on a machine."""

import os
from pathlib import Path

import numpy as np
import torch

from vlarl.learning import node
from vlarl.learning.memory_file import MemoryFile, open_memory_file
from vlarl.learning.node import NodeMemory
from vlarl.learning.ranks import Ranks


def main(folder: Path, sizes: tuple[int, ...], chunk: int) -> None:
    """Leaves what each rank sees as RANK-NUMBER.bin."""
    ranks = Ranks.from_environment()
    pids = ranks.gather(torch.tensor([os.getpid()]), ranks.size).tolist()
    here = [pids[one] for one in _machine(ranks.rank)]

    def on_this_machine(pid: int, descriptor: int) -> int | None:
        """Of a process of another machine, /proc knows nothing."""
        return open_memory_file(pid, descriptor) if pid in here else None

    node.open_memory_file = on_this_machine
    node._CHUNK = chunk
    memory = NodeMemory(ranks)
    assert memory._first_here == _machine(ranks.rank)[0]
    for number, size in enumerate(sizes):
        file = None
        if ranks.first:
            file = MemoryFile()
            file.append([bytes(index % 251 for index in range(size))])
        seen = memory.share(file)
        if file is not None:
            file.close()
        (folder / f"{ranks.rank}-{number}.bin").write_bytes(seen.tobytes())
    # Ranks of a machine have the same pages, not copies: who comes first writes, the other reads.
    shared = MemoryFile()
    shared.append([bytes(8)])
    seen = memory.share(shared if ranks.first else None)
    if ranks.rank == memory._first_here:
        seen[:] = np.frombuffer(b"written%d" % ranks.rank, np.uint8)
    ranks.gather(torch.zeros(1), ranks.size)  # and all wait for all
    (folder / f"{ranks.rank}-written.bin").write_bytes(seen.tobytes())
    ranks.leave()


def _machine(rank: int) -> tuple[int, int]:
    return (0, 1) if rank < 2 else (2, 3)
