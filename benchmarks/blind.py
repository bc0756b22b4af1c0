"""What LIBERO's initial states ask of the eyes: one recording of a task, replayed without looking.

    python -m benchmarks.blind [--quick] [--suite libero_object ...]

The expert plays each task once, from a placement that training would draw. Its actions are then
carried out, one after the other, from the official initial states, whatever happens. The yardstick
is the expert, who looks. Where blind replay comes near it, a policy's success says little about
what it sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.report import Report
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_jobs.demonstrations.episodes import Array, Episode, Play, play, start
from vlarl_jobs.demonstrations.scene_cache import SceneCache, Stage

SUITES = ("libero_spatial", "libero_object")
STATES = 10
HOW = Play(action_repeat=5)
FIRST_PLACEMENT = 1000
TRIES = 5


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tasks, two states each")
    parser.add_argument("--suite", action="append", help="default: Spatial and Object")
    arguments = parser.parse_args()
    tasks, states = (2, 2) if arguments.quick else (10, STATES)
    report = Report("blind", "Official initial states without looking")
    stages = SceneCache({}, "fast")
    for suite in arguments.suite or SUITES:
        looking, blind = [], []
        for task in TaskCatalog().tasks(suite)[:tasks]:
            stage = stages.of(suite, task.index)
            recording = record(stage)
            looking += [looks(stage, state) for state in range(states)]
            blind.append(np.mean([replays(stage, recording, state) for state in range(states)]))
        report.add(f"{suite}, the expert looks", 100 * float(np.mean(looking)), "%")
        report.add(
            f"{suite}, one recording a task replayed",
            100 * float(np.mean(blind)),
            "%",
            against=f"{suite}, the expert looks",
            note=f"by task: {', '.join(f'{100 * share:.0f}' for share in blind)}",
        )
    stages.close()
    report.finish()


def record(stage: Stage) -> Sequence[Array]:
    """The expert's actions, in simulator units, from the first placement in which it succeeds.

    Raises:
        RuntimeError: it succeeds in none of the first five.
    """
    for seed in range(FIRST_PLACEMENT, FIRST_PLACEMENT + TRIES):
        start(stage.scene, stage.task, HOW.settle_steps, placement_seed=seed)
        if (episode := expert(stage)).success:
            return list(episode.actions)
    raise RuntimeError(f"{stage.task.suite} {stage.task.index}: no recording reached the goal")


def looks(stage: Stage, state: int) -> bool:
    """Whether the expert reaches the goal from an official state."""
    start(stage.scene, stage.task, HOW.settle_steps, init_state=state)
    return expert(stage).success


def expert(stage: Stage) -> Episode:
    """The expert's episode from the scene as it is now; nothing is random in it."""
    limit = stage.task.max_control_steps
    return play(stage.scene, stage.sight, limit, HOW, np.random.default_rng(0))


def replays(stage: Stage, actions: Sequence[Array], state: int) -> bool:
    """Whether a recording's actions reach the goal from an official state."""
    start(stage.scene, stage.task, HOW.settle_steps, init_state=state)
    for action in actions:
        stage.scene.control_step(action)
        if stage.scene.succeeded():
            return True
    return False


if __name__ == "__main__":
    main()
