"""What an env server and its simulators hold in memory, by profile and scenes kept.

    python -m benchmarks.env_memory [--quick]

One server with one simulator draws 256 px in software. It is asked for a task after another, and
counted after each: the bytes of its processes, shared ones divided among those that share them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from benchmarks.env_load import drive, reset_command, serving
from benchmarks.report import Report
from vlarl.config import EnvConfig

SUITE = "libero_spatial"
MB = 1e6


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one scene instead of four")
    scenes = 1 if parser.parse_args().quick else 4
    report = Report("env_memory", f"Memory of simulators, {SUITE}, 256 px, drawn in software")
    for profile in ("faithful", "fast"):
        env = EnvConfig.model_validate(
            {"processes": 1, "profile": profile, "render_size": 256, "cached_tasks": scenes}
        )
        with serving(env) as address:
            for task in range(scenes):
                asyncio.run(drive(address, reset_command(SUITE, task), 1.0, 1))
                server, *simulators = [proportional(pid) for pid in family(os.getpid())[1:]]
                if not task:
                    report.add(f"{profile}: server", server / MB, "MB")
                report.add(f"{profile}: simulator, {task + 1} scenes", max(simulators) / MB, "MB")
    report.finish()


def family(pid: int) -> list[int]:
    """A process and all below it, the process first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [pid, *(one for child in children for one in family(int(child)))]


def proportional(pid: int) -> int:
    """Bytes of a process; of what several share, its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    (size,) = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(size) * 1024


if __name__ == "__main__":
    main()
