"""Stage `up`: the whole stack for a few iterations, everything on one GPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.carried import interpreter, loaders
from benchmarks.gpu_check.check import Check, log_tail
from benchmarks.gpu_check.results import say

SETTINGS = (
    "trainer.iterations=3",
    "trainer.episodes_per_iteration=48",
    "env.processes=12",
    "evaluation.episodes_per_task=40",
    "evaluation.every_iterations=3",
)
LEAST_SECONDS = 90.0
"""Without which it isn't started."""

_GAP_BOUND = 0.3
_SHOWN = (
    "logprob_gap",
    "success_rate",
    "seconds_rollout",
    "seconds_learning",
    "seconds_publish",
    "publish_pause_seconds",
    "seconds_iteration",
)


def run_up(check: Check, config: str, settings: Sequence[str], seconds: float) -> None:
    """Runs `vlarl up` and adds what its iterations say.

    Args:
        check: the run.
        config: the run's file.
        settings: KEY=VALUE.
        seconds: after which it is interrupted.
    """
    run, log = check.work / "run", check.work / "up.log"
    python = str(interpreter(check.work / "environment"))
    command = [python, "-m", "vlarl", "up", config, "--run-dir", str(run)]
    command += [part for setting in settings for part in ("--set", setting)]
    began = time.perf_counter()
    code = _call(command, log, check, max(5.0, min(seconds, check.left - 5)))
    add = check.results.add
    add("up: ended with", "still running" if code is None else code, ok=code == 0)
    add("up: took", time.perf_counter() - began, "s")
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    add("up: iterations", len(lines), ok=bool(lines))
    for line in lines:
        _add_iteration(check, json.loads(line))
    for service in sorted(run.glob("logs/*")):
        shutil.copy(service, check.work / f"up-{service.stem}.log")
    env = run / "logs/env.log"
    if env.exists():
        drawn = "draw with GPUs" in env.read_text(errors="replace", encoding="utf-8")
        add("up: simulators draw on a GPU", drawn, note="the env's log")
    if code != 0:
        say(f"   {log_tail(log)}")


def _call(command: Sequence[str], log: Path, check: Check, seconds: float) -> int | None:
    """Its exit code; none: it was interrupted."""
    variables = os.environ | loaders() | {"VLARL_CACHE": str(check.work / "simulator-cache")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=variables, start_new_session=True
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _add_iteration(check: Check, line: dict[str, Any]) -> None:
    for key in _SHOWN:
        if key in line:
            ok = line[key] < _GAP_BOUND if key == "logprob_gap" else None
            check.results.add(f"up: iteration {line['iteration']}: {key}", line[key], ok=ok)
