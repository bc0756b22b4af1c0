"""How fast a simulator constructs a scene that is compiled, one that is kept besides, and one that
was kept in the cache folder (whose pages are in memory).

    python -m benchmarks.scenes [--quick]

Runs in the simulator's environment, draws in software. Libraries are loaded before, and the smaller
textures and meshes of `fast` are there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

from benchmarks.report import Report
from vlarl_env.simulators.libero import compiled as compiled_scenes
from vlarl_env.simulators.libero.scene import Profile, Scene
from vlarl_env.simulators.registry import TaskCatalog

SUITE, INDEX = "libero_spatial", 0
UNIT = "scenes/s"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one construction instead of five")
    times = 1 if parser.parse_args().quick else 5
    report = Report("scenes", f"Constructions of {SUITE}:{INDEX} a second")
    bddl_file = TaskCatalog().find(SUITE, INDEX).bddl_file
    profiles: tuple[Profile, ...] = ("faithful", "fast")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VLARL_CACHE"] = cache
        for profile in profiles:
            construct(bddl_file, profile)
            compiled, keeping, kept = [], [], []
            for _ in range(times):
                shutil.rmtree(Path(cache) / "scenes")
                with mock.patch.object(compiled_scenes, "MOST_BYTES", 0):
                    compiled.append(construct(bddl_file, profile))
                keeping.append(construct(bddl_file, profile))
                kept.append(construct(bddl_file, profile))
            base = f"{profile}, compiled"
            report.add(base, 1 / median(compiled), UNIT)
            report.add(f"{base} and kept", 1 / median(keeping), UNIT, against=base)
            report.add(f"{profile}, found", 1 / median(kept), UNIT, against=base, at_least=1.5)
    raise SystemExit(0 if report.finish() else 1)


def construct(bddl_file: Path, profile: Profile) -> float:
    """Seconds until a scene is there, its graphics included."""
    began = time.perf_counter()
    scene = Scene(bddl_file, profile)
    seconds = time.perf_counter() - began
    scene.close()
    return seconds


if __name__ == "__main__":
    main()
