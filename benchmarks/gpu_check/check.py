"""What all stages share."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.results import Results, now


@dataclass(frozen=True)
class Check:
    """One run of the check.

    Attributes:
        results: where numbers go.
        work: folder for logs and what else is forgotten at the end.
        scratch: folder for a checkpoint of 15 GiB.
        deadline: seconds after the start at which all is over.
        cuda: whether there is a GPU.
        rehearse: whether a small model takes the large one's place.
    """

    results: Results
    work: Path
    scratch: Path
    deadline: float
    cuda: bool
    rehearse: bool

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - now()

    def add_memory(self, name: str, when: str) -> None:
        """Adds what all processes hold of the GPU's memory."""
        if not self.cuda:
            return
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        used = subprocess.run(query, capture_output=True, encoding="utf-8").stdout.split()
        if used:
            gib = int(used[0]) / 1024
            self.results.add(f"{name}: the GPU's memory in use, {when}", gib, "GiB")


def log_tail(path: Path, length: int = 600) -> str:
    """What a log ends with; its last errors first where it names some."""
    lines = path.read_text(errors="replace", encoding="utf-8").splitlines()
    errors = [line for line in lines if "Error" in line and "EngineDead" not in line][-2:]
    errors += [line for line in lines if line.startswith("error: ")]
    return " | ".join([*errors, *lines[-3:]])[-length:]
