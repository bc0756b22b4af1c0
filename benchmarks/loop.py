"""Where an iteration's time goes, and how much of the slower part's speed the whole loop keeps.

    python -m benchmarks.loop [--quick]

First the two parts of a rollout alone, each with the machine to itself: the env pool, asked for
the same actions without any policy, and the policy server, asked by as many clients as there are
simulators. Then the whole loop with the same settings: rollout, scoring, learning, checkpoint,
publication. Then the env pool once more. Everything through the real services.

Where both parts work on the same cores, a step costs what it costs in each: no loop can be faster
than 1 / (1/env + 1/policy), which the table shows as "parts in turn". So all is measured again
with env pool and policy server on cores of their own, each half of the machine, alone and in the
loop: that is what a policy on a GPU or on another node sees, and what overlapping is for. The
trainer works where the policy does. There are four simulators a core then: one that waits for its
action leaves the core to the others. In the last loop the next episodes are collected while the
trainer learns (`trainer.staleness = 1`); in the others simulators stand still meanwhile.

Episodes are as long as the suite lets them be, but for --quick.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.env_load import drive, reset_command, serving
from benchmarks.placement import placed
from benchmarks.policy_load import Load, served
from benchmarks.report import Report
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.config import RunConfig, load_config
from vlarl.launch.supervisor import simulator_python
from vlarl.models.registry import policy_spec

CONFIG = Path("configs/embedded.toml")
UNIT = "env-steps/s"
WARM_UP_ITERATIONS = 2
"""Iterations that don't count: scenes are built, the critic warms up."""
SUITES_OWN_LIMIT = 0
"""What `tasks.max_actions` says for it."""
SIMULATORS_A_CORE = 4
"""Where the policy doesn't share the simulators' cores."""
EPISODES = 8
"""An iteration's; twice as many as the simulators of one core."""
ENV, POLICY, OWN = "env pool alone", "policy alone", ", own cores"


def main() -> None:
    """Entry point."""
    report = Report("loop", f"A whole iteration of {CONFIG.name}, task 0, against its parts alone")
    sys.exit(0 if measure(report, quick=asked_to_be_quick(__doc__), wanted=0.8) else 1)


def asked_to_be_quick(description: str | None) -> bool:
    """Whether the command line has --quick, the only option."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    return bool(parser.parse_args().quick)


def measure(report: Report, *, quick: bool, wanted: float, settings: Sequence[str] = ()) -> bool:
    """Measures and prints the table; False where a wanted ratio is missed.

    Args:
        report: Where the rows go.
        quick: Whether seconds are enough.
        wanted: Of the slower part alone, by the overlapped loop on cores of its own.
        settings: Of the configuration, ``KEY=VALUE``.
    """
    chunk = policy_spec(load_config(CONFIG, settings).policy.checkpoint).chunk
    seconds, iterations, actions = (5.0, 1, 12) if quick else (30.0, 4, SUITES_OWN_LIMIT)
    overrides = [
        "tasks.indices=[0]",
        f"tasks.max_actions={actions * chunk}",
        f"trainer.iterations={WARM_UP_ITERATIONS + iterations + 1}",
        f"trainer.episodes_per_iteration={EPISODES}",
        "evaluation.at_end=false",
        *settings,
    ]
    parts, (lines,) = parts_and_loops(seconds, overrides)
    slower = parts.add(report)
    in_turn = 1 / (1 / parts.env + 1 / parts.policy)
    note = "all that shared cores can give"
    report.add("parts in turn", in_turn, UNIT, against=slower, note=note)
    add_loop(report, overrides, lines, "", slower)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        half = len(cores) // 2
        env, rest = cores[:half], cores[half:]
        overrides += [
            f"env.processes={SIMULATORS_A_CORE * len(env)}",
            f"env.concurrent_steps={len(env) + 1}",  # as by default on so many cores
            f"policy.cpu_threads={len(rest)}",
        ]
        ahead = [*overrides, "trainer.staleness=1"]
        with placed({"env": set(env), "policy": set(rest), "train": set(rest)}):
            parts, (waiting, overlapped) = parts_and_loops(seconds, overrides, ahead)
        slower = parts.add(report, OWN)
        add_loop(report, overrides, waiting, OWN, slower)
        add_loop(report, ahead, overlapped, f"{OWN}, overlapped", slower, at_least=wanted)
    return report.finish()


@dataclass(frozen=True)
class Parts:
    """The two parts of a rollout, each with its cores to itself, in env-steps/s."""

    processes: int
    """Simulators, and clients of the policy server."""
    before: float
    """The env pool's speed before the loops."""
    after: float
    """The same after them. A shared machine's speed changes by a fifth within minutes."""
    policy: float
    """The policy server's speed."""

    @property
    def env(self) -> float:
        """What the loops are measured against: the mean of before and after."""
        return (self.before + self.after) / 2

    def add(self, report: Report, mark: str = "") -> str:
        """Adds both, their names with the mark behind; returns the slower one's name."""
        note = f"{self.processes} simulators: {self.before:.4g} before, {self.after:.4g} after"
        env = report.add(f"{ENV}{mark}", self.env, UNIT, note=note)
        clients = f"{self.processes} clients"
        policy = report.add(f"{POLICY}{mark}", self.policy, UNIT, note=clients)
        return min(env, policy, key=lambda part: part.value).name


def parts_and_loops(
    seconds: float, *loops: Sequence[str]
) -> tuple[Parts, list[list[dict[str, float]]]]:
    """The parts alone, with the first loop's overrides, and `whole_loop` of each in between."""
    config = load_config(CONFIG, loops[0])
    repeat = config.env.action_repeat
    before = env_part(config, seconds) * repeat
    policy = policy_part(config, seconds) * repeat
    lines = []
    for loop in loops:
        with tempfile.TemporaryDirectory(prefix="vlarl-") as folder:
            lines.append(whole_loop(loop, Path(folder) / "run"))
    after = env_part(config, seconds) * repeat
    return Parts(config.env.processes, before, after, policy), lines


def add_loop(
    report: Report,
    overrides: Sequence[str],
    lines: Sequence[dict[str, float]],
    mark: str,
    slower: str,
    at_least: float | None = None,
) -> None:
    """Adds a whole loop, against the slower part alone, and where its time went."""
    config = load_config(CONFIG, overrides)
    steps = sum(line["control_steps"] for line in lines)
    whole = sum(line["seconds_iteration"] for line in lines)
    if config.trainer.staleness == 0:
        rollout = sum(line["seconds_rollout"] for line in lines)
        report.add(f"rollout{mark}", steps / rollout, UNIT, against=slower)
    report.add(f"whole iteration{mark}", steps / whole, UNIT, against=slower, at_least=at_least)
    shares(report, lines, whole, config, mark)


def shares(
    report: Report,
    lines: Sequence[dict[str, float]],
    seconds: float,
    config: RunConfig,
    mark: str,
) -> None:
    """Adds each phase's share of wall time; within the rollout, an env's time by what it did."""
    for phase in ("rollout", "learning", "checkpoint", "publish"):
        spent = sum(line.get(f"seconds_{phase}", 0.0) for line in lines)
        report.add(f"share of {phase}{mark}", spent / seconds, "of wall time")
    waited = sum(line.get("seconds_waiting_for_policy", 0.0) for line in lines)
    stepped = sum(line.get("seconds_in_episodes", 0.0) for line in lines) - waited
    lanes = seconds * config.env.processes
    for what, spent in (("step and render", stepped), ("wait for actions", waited)):
        name = f"simulators {what}{mark}"
        report.add(name, spent / lanes, "of wall time", note="mean of envs")


def env_part(config: RunConfig, seconds: float) -> float:
    """Actions a second of the pool, all its simulators in an episode, as many at a time as the
    policy answers.
    """
    horizon = policy_spec(config.policy.checkpoint).chunk
    env = config.env.model_copy(update={"external_processes": config.env.processes})
    with serving(env, str(simulator_python())) as address:
        reset = reset_command(config.tasks.suite, config.tasks.indices[0])
        processes, repeat = config.env.processes, config.env.action_repeat
        return asyncio.run(drive(address, reset, seconds, processes, repeat, horizon))


def policy_part(config: RunConfig, seconds: float) -> float:
    """Actions a second of the server, asked by as many clients as there are simulators."""

    async def ask(directory: Path) -> float:
        checkpoint = config.policy.checkpoint
        async with (
            served(
                checkpoint, directory, config.policy.max_batch, config.policy.cpu_threads
            ) as address,
            AsyncPolicyClient(address) as client,
        ):
            await Load(client, config.env.processes).run(2.0)
            load = Load(client, config.env.processes)
            await load.run(seconds)
            return load.control_speed

    with tempfile.TemporaryDirectory(prefix="vlarl-") as folder:
        return asyncio.run(ask(Path(folder)))


def whole_loop(overrides: Sequence[str], run_dir: Path) -> list[dict[str, float]]:
    """Runs the stack; the metrics of its iterations after the warm-up, and the `control_steps` of
    each, but for the last, beside which no further episodes are collected.
    """
    settings = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "vlarl", "up", str(CONFIG), "--run-dir", str(run_dir)]
    subprocess.run([*command, *settings], check=True)
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    before = [0, *(row["env_steps"] for row in rows)]
    counted = [
        row | {"control_steps": row["env_steps"] - start}
        for row, start in zip(rows, before, strict=False)
    ]
    return counted[WARM_UP_ITERATIONS:-1]


if __name__ == "__main__":
    main()
