"""Draws the official initial states of a suite of our own, once, for evaluation on fixed states.

    python -m vlarl_env.simulators.libero.init_states FOLDER [--count 50]

Each BDDL file gets a NAME.init.npz beside it, in LIBERO's layout. State k is what reset k of the
benchmark's evaluation loop draws, so that fixtures, which no state holds, stand in the evaluation
where they stood when the state was drawn. Of the seeds that training draws from, [0, 2**63), only 0
leads there, to state 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from vlarl.config import ConfigError
from vlarl.config.suites import bddl_files
from vlarl_env.errors import BrokenSceneError, NoRoomError
from vlarl_env.simulators.libero.bddl_check import check_bddl
from vlarl_env.simulators.libero.scene import Scene


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of BDDL files")
    parser.add_argument("--count", type=int, default=50, help="states of each task")
    arguments = parser.parse_args()
    try:
        for file in bddl_files(arguments.folder):
            check_bddl(file)
            draw(file, arguments.count)
    except (OSError, ConfigError, BrokenSceneError, NoRoomError) as error:
        sys.exit(str(error))


def draw(bddl_file: Path, count: int) -> Path:
    """Writes the states of one task: `states`, float64[count, 1 + nq + nv]."""
    scene = Scene(bddl_file, "fast")
    states = []
    for number in range(count):
        scene.draw_official(number)
        states.append(scene.state())
    scene.close()
    target = bddl_file.with_suffix(".init.npz")
    np.savez_compressed(target, states=np.stack(states))
    return target


if __name__ == "__main__":
    main()
