"""What collecting ahead of the learner brings, and what it costs.

    python -m benchmarks.staleness FOLDER [--seeds 7 8 9] [--staleness 0 1 2 4] [--set KEY=VALUE]

Whole runs of configs/reach.toml with `trainer.staleness` 0, 1, 2 and 4: control steps a second,
how long each part stands still, and greedy success after the same number of episodes. Evaluations
aren't counted in the seconds. Each run is a folder in FOLDER; those that are complete there are
read, not run again, so that hours of work can be cut into pieces.

Simulators are idle while they wait for an episode to begin, the policy server while it has no
request, the trainer while it neither learns nor publishes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.report import Report
from vlarl.config import load_config
from vlarl.json_lines import read_lines

CONFIG = Path("configs/reach.toml")
SAMPLE_SECONDS = 0.25
RUNNING = "vlarl_policy_actions_running"
WATCHED = "policy-running.json"
"""Written last, so a run that has it is complete."""
UNITS = {
    "speed": ("whole run", "env-steps/s"),
    "simulators": ("simulators idle", "of wall time"),
    "policy": ("policy server idle", "of wall time"),
    "trainer": ("trainer idle", "of wall time"),
    "stale": ("stale actions", "of all"),
    "success": ("greedy success at the end", "of episodes"),
}
"""What is shown, by the names in `numbers`."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are, or come")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--set", action="append", default=[], help="of vlarl up, for all runs")
    arguments = parser.parse_args()
    overrides = ["evaluation.at_start=false", "evaluation.every_iterations=0", *arguments.set]
    report = Report("staleness", f"{CONFIG.name}, seeds {arguments.seeds}, episodes ordered ahead")
    found = {}
    # All values with the first seed come first: what is cut short can be compared.
    for seed, staleness in itertools.product(arguments.seeds, arguments.staleness):
        run = arguments.folder / f"staleness-{staleness}-seed-{seed}"
        if not (run / WATCHED).exists():
            train(run, [*overrides, f"seed={seed}", f"trainer.staleness={staleness}"])
        found[staleness, seed] = numbers(run)
    for staleness in arguments.staleness:
        runs = [found[staleness, seed] for seed in arguments.seeds]
        add(report, staleness, runs, baseline=arguments.staleness[0])
    sys.exit(0 if report.finish() else 1)


def train(run: Path, overrides: Sequence[str]) -> None:
    """One run, during which the policy server is watched."""
    settings = [part for one in overrides for part in ("--set", one)]
    command = [sys.executable, "-m", "vlarl", "up", str(CONFIG), "--run-dir", str(run)]
    over = threading.Event()
    samples: list[tuple[float, float]] = []
    watching = threading.Thread(target=watch, args=(run / "addresses.txt", samples, over))
    watching.start()
    try:
        subprocess.run([*command, *settings], check=True)
    finally:
        over.set()
        watching.join()
    (run / WATCHED).write_text(json.dumps(samples), encoding="utf-8")


def watch(addresses: Path, samples: list[tuple[float, float]], over: threading.Event) -> None:
    """Adds the time and how many actions the policy server computes, again and again."""
    while not over.wait(SAMPLE_SECONDS):
        try:
            words = addresses.read_text(encoding="utf-8").split()
            metrics = words[words.index("policy") + 3]
            with urllib.request.urlopen(metrics, timeout=1) as answer:  # noqa: S310 - our own
                lines = answer.read().decode().splitlines()
        except (OSError, ValueError, IndexError):  # it isn't there yet, or any more
            continue
        running = [float(one.split()[1]) for one in lines if one.startswith(f"{RUNNING} ")]
        samples += [(time.time(), value) for value in running]


def numbers(run: Path) -> dict[str, float]:
    """What a complete run says."""
    config = load_config(run / "config.toml")
    rows = read_lines(run / "metrics.jsonl")
    # From the first on: later ones' episodes are collected while it learns.
    wall = sum(row["seconds_iteration"] for row in rows)
    busy = sum(row["seconds_in_episodes"] for row in rows)
    worked = ("learning", "checkpoint", "publish")
    ends = [(row["completed_timestamp_seconds"], row["seconds_iteration"]) for row in rows]
    samples = json.loads((run / WATCHED).read_text(encoding="utf-8"))
    running = [value for at, value in samples if any(0 <= end - at <= long for end, long in ends)]
    return {
        "speed": rows[-1]["env_steps"] / wall,
        "simulators": 1 - busy / (wall * config.env.processes),
        "policy": float(np.mean([value == 0 for value in running])),
        "trainer": 1 - sum(row[f"seconds_{one}"] for row in rows for one in worked) / wall,
        "stale": float(np.mean([row["stale_actions"] for row in rows])),
        "success": read_lines(run / "evaluations.jsonl")[-1]["total"]["success_rate"],
    }


def add(report: Report, staleness: int, runs: Sequence[dict[str, float]], *, baseline: int) -> None:
    """Means over the seeds, with their range; baseline: the staleness that speeds are against."""
    for key, (what, unit) in UNITS.items():
        values = [one[key] for one in runs]
        compared = key == "speed" and staleness != baseline
        report.add(
            f"{what}, staleness {staleness}",
            float(np.mean(values)),
            unit,
            against=f"{what}, staleness {baseline}" if compared else None,
            note=f"{min(values):.3g} to {max(values):.3g}",
        )


if __name__ == "__main__":
    main()
