"""RUN/starts.jsonl: a line each time that the trainer starts, with the machine that it is on."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from vlarl.json_lines import JsonLines
from vlarl.learning.ranks import Ranks


def record_start(run_dir: Path, iteration: int, ranks: Ranks) -> None:
    """Adds a line.

    Args:
        run_dir: the run's folder.
        iteration: iterations completed before.
        ranks: the trainer's ranks; the machine is that of the first.
    """
    accelerated = ranks.device.type == "cuda"
    JsonLines(run_dir / "starts.jsonl").append(
        {
            "started_timestamp_seconds": time.time(),
            "iteration": iteration,
            "vlarl": version("vlarl"),
            "torch": torch.__version__,
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(_memory_bytes() / 2**30, 1),
            "accelerator": torch.cuda.get_device_name(ranks.device) if accelerated else "",
            "ranks": ranks.size,
        }
    )


def _processor() -> str:
    """The processor's name as the kernel tells it, or at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
