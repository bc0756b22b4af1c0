"""Control steps a second: the served pool against a bare loop over LIBERO's own environment.

    python -m benchmarks.env [--quick] [--task libero_spatial:0]

Everybody runs the same task with the same actions and looks at every control step. The bare loops
are processes of their own that do nothing else: LIBERO's `OffScreenRenderEnv` as it comes (two
cameras), and our simulator with the server's settings (one camera, JPEG) but without server, pool
or wire. The served pool is a real server, asked through `Interact` over loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.env_load import WARM_UP, actions, drive, reset_command, serving
from benchmarks.report import Report
from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl_env.simulators.libero import headless
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_env.simulators.registry import TaskCatalog

SIZE = 256
UNIT = "steps/s"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--task", default="libero_spatial:0", help="SUITE:INDEX")
    parser.add_argument("--loop", choices=sorted(LOOPS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    suite, _, index = arguments.task.partition(":")
    seconds = arguments.seconds or (6.0 if arguments.quick else 30.0)
    if arguments.loop:
        LOOPS[arguments.loop](TaskCatalog().find(suite, int(index)), seconds)
        return
    sys.exit(0 if compare(arguments.task, seconds) else 1)


def compare(task: str, seconds: float) -> bool:
    """Measures everything and prints the table; False where a wanted ratio is missed."""
    report = Report("env", f"Control steps a second, {task}, a frame of {SIZE} px every step")
    for processes in (1, 2):
        stock = f"LIBERO x{processes}"
        note = f"{processes} bare loop{'s' if processes > 1 else ''}, two cameras"
        report.add(stock, bare(task, "stock", seconds, processes), UNIT, note=note)
        for profile, wanted in (("faithful", 1.7), ("fast", 4.0)):
            loop = f"{profile} x{processes}"
            report.add(loop, bare(task, profile, seconds, processes), UNIT, note="bare, one camera")
            speed = served(task, profile, seconds, processes)
            ours = f"served {profile} x{processes}"
            report.add(ours, speed, UNIT, against=stock, at_least=wanted)
            report.add(f"{ours} ", speed, UNIT, against=loop, at_least=0.9)
    return report.finish()


def timed(step: Callable[[npt.NDArray[np.float64]], object], seconds: float) -> None:
    """Says READY, waits for a line, steps for so long, prints the steps a second."""
    moves = actions()
    for _ in range(WARM_UP):
        step(next(moves))
    print("READY", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    steps = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        step(next(moves))
        steps += 1
    print(steps / elapsed, flush=True)


def stock_loop(task: SuiteTask, seconds: float) -> None:
    """LIBERO's own environment as it comes, but for 256 pixels."""
    headless.prepare()
    from libero.libero.envs import OffScreenRenderEnv

    from vlarl.models.statistics import to_simulator

    env = OffScreenRenderEnv(
        bddl_file_name=str(task.bddl_file),
        camera_heights=SIZE,
        camera_widths=SIZE,
        ignore_done=True,
    )
    env.seed(0)
    env.reset()
    timed(lambda action: env.step(to_simulator(action)), seconds)


def simulator_loop(profile: str) -> Callable[[SuiteTask, float], None]:
    """Our simulator, with nothing around it."""

    def loop(task: SuiteTask, seconds: float) -> None:
        headless.prepare()
        from vlarl_env.simulators.episode import Simulator

        simulator = Simulator(task, settings(profile, 1))
        simulator.reset(reset_command(task.suite, task.index))
        timed(
            lambda action: simulator.step(env_pb2.StepEpisode(action=action)),
            seconds,
        )

    return loop


LOOPS: dict[str, Callable[[SuiteTask, float], None]] = {
    "stock": stock_loop,
    "faithful": simulator_loop("faithful"),
    "fast": simulator_loop("fast"),
}


def settings(profile: str, processes: int) -> EnvConfig:
    """What the served pool and the bare loop over our simulator have in common."""
    return EnvConfig.model_validate(
        {
            "profile": profile,
            "processes": processes,
            "external_processes": processes,
            "render_size": SIZE,
        }
    )


def bare(task: str, loop: str, seconds: float, processes: int) -> float:
    """Steps a second of so many bare loops at once, together."""
    command = [sys.executable, "-m", "benchmarks.env", "--task", task]
    command += ["--loop", loop, "--seconds", str(seconds)]
    environment = headless.headless_environment(os.environ, egl_device=None)
    running = [
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for _ in range(processes)
    ]
    try:
        for process in running:
            _line(process, "READY")
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum(float(_line(process)) for process in running)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[str], expected: str | None = None) -> str:
    """The next line that matters; LIBERO prints others."""
    assert process.stdout is not None
    for line in process.stdout:
        text = line.strip()
        if text == expected or (expected is None and _is_number(text)):
            return text
    raise RuntimeError(f"a bare loop ended with status {process.wait()}")


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def served(task: str, profile: str, seconds: float, processes: int) -> float:
    """Steps a second of a served pool, all its simulators in an episode."""
    suite, _, index = task.partition(":")
    with serving(settings(profile, processes)) as address:
        return asyncio.run(drive(address, reset_command(suite, int(index)), seconds, processes))


if __name__ == "__main__":
    main()
