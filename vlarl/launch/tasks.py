"""Which tasks there are, asked of the simulator's environment before anything is started."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence

from google.protobuf.json_format import Parse

from vlarl.config import ConfigError, EnvConfig
from vlarl.config.libero import simulator_environment
from vlarl.config.suites import check_suite
from vlarl.env.v1 import env_pb2
from vlarl.launch.supervisor import simulator_python


def suite_tasks(env: EnvConfig, suite: str) -> list[env_pb2.TaskDescription]:
    """The tasks of a suite, in order.

    Raises:
        ConfigError: no such suite (the message names those that exist), or no simulator.
    """
    said = _ask_simulator("vlarl_env.tasks", env, suite)
    return list(Parse(said, env_pb2.ListTasksResponse()).tasks)


def simulator_identity(env: EnvConfig, suite: str) -> dict[str, str]:
    """Versions of the simulator's packages, and a digest of a suite's scenes and initial states.

    Raises:
        ConfigError: no such suite, or no simulator.
    """
    identity: dict[str, str] = json.loads(
        _ask_simulator("vlarl_env.simulators.libero.identity", env, suite)
    )
    return identity


def _ask_simulator(module: str, env: EnvConfig, suite: str) -> str:
    """What a program of the simulator's environment prints about a suite."""
    check_suite(env, suite)  # at once; such a process takes a second
    command = [str(simulator_python()), "-m", module, suite]
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        input=env.model_dump_json(),
        capture_output=True,
        encoding="utf-8",
        env=simulator_environment(os.environ) | {"PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise ConfigError(last[0] if last else f"{' '.join(command)} failed")
    return done.stdout


def choose_tasks(
    tasks: Sequence[env_pb2.TaskDescription], indices: Sequence[int], episodes: int
) -> list[env_pb2.TaskDescription]:
    """Those of a suite's tasks that are meant, each once, in the suite's order.

    Args:
        tasks: the suite's.
        indices: positions in the suite; empty: all.
        episodes: official initial states that each must have.

    Raises:
        ConfigError: there is no such task, or it has fewer initial states.
    """
    suite = tasks[0].task.suite
    known = {task.task.index: task for task in tasks}
    if unknown := sorted(set(indices) - known.keys()):
        raise ConfigError(
            f"suite {suite!r} has tasks 0 to {len(tasks) - 1}, so there is no number {unknown[0]}"
        )
    chosen = [known[index] for index in sorted(set(indices) or known)]
    for task in chosen:
        if task.init_states < episodes:
            raise ConfigError(
                f"task {task.task.index} of suite {suite!r} has {task.init_states} official "
                f"initial states, fewer than {episodes} episodes (evaluation.episodes_per_task)"
                + (
                    "; python -m vlarl_env.simulators.libero.init_states FOLDER draws some"
                    * (not task.init_states)
                )
            )
    return chosen


def described(
    chosen: Sequence[env_pb2.TaskDescription], tasks: Sequence[env_pb2.TaskDescription]
) -> str:
    """Which of a suite's tasks are meant, in words: "tasks 0, 3 of libero_goal's 10"."""
    suite = tasks[0].task.suite
    if len(chosen) == 1:
        only = chosen[0]
        return f"task {only.task.index} of {suite}'s {len(tasks)}, {only.instruction}"
    if len(chosen) == len(tasks):
        return f"all {len(tasks)} tasks of {suite}"
    numbers = ", ".join(str(one.task.index) for one in chosen)
    return f"tasks {numbers} of {suite}'s {len(tasks)}"
