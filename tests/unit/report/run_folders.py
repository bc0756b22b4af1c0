"""Small run folders, written by what writes a run's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from vlarl.config import RunConfig, TasksConfig, TrainerConfig, dump_toml
from vlarl.learning.ranks import Ranks
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl.trainer.v1 import trainer_pb2
from vlarl_jobs.evaluation.film import write_film
from vlarl_jobs.evaluation.folder import EvaluationFolder
from vlarl_trainer.record.actions import ActionLog
from vlarl_trainer.record.evaluation import EpisodeResult, EvaluationLog, count
from vlarl_trainer.record.machine import record_start
from vlarl_trainer.record.metrics import METRICS, MetricsLog
from vlarl_trainer.record.progress import Progress
from vlarl_trainer.rollouts.curriculum import Curriculum

EPISODES, STEPS, SECONDS = 20, 100, 60.0
"""Of each iteration."""
EVALUATION_SECONDS = 30.0
CRITICS = {"value_loss", "explained_variance"}
GROUPS = {name for name in METRICS if name.startswith("group")} | {"episodes_per_learned"}


def make_run(
    path: Path,
    *,
    seed: int = 7,
    iterations: int = 6,
    wanted: int = 6,
    tasks: tuple[int, ...] = (0, 3),
    evaluated: tuple[int, ...] = (0, 3, 6),
    solved: dict[int, int] | None = None,
    config: dict[str, object] | None = None,
    returns: dict[int, int] | None = None,
) -> Path:
    """A run whose success rises from 10 % to 60 % over its iterations.

    Args:
        path: its folder, whose name is the run's id.
        seed: the run's; also of what differs between runs.
        iterations: complete ones.
        wanted: those that it was to have.
        tasks: what is trained on.
        evaluated: after how many iterations; as many of 10 episodes succeed as iterations went by.
        solved: after how many iterations other than as many of 10 episodes succeed.
        config: further sections of the configuration.
        returns: before which iterations it went back to the policy after how many.
    """
    path.mkdir(parents=True)
    settings = RunConfig(
        name=path.name,
        seed=seed,
        tasks=TasksConfig(suite="reach", indices=tasks),
        trainer=TrainerConfig(iterations=wanted),
    )
    settings = settings.model_copy(update=config or {})
    (path / "config.toml").write_text(dump_toml(settings))
    if not iterations:
        return path
    record_start(path, 0, Ranks.alone(torch.device("cpu")))
    _write_iterations(path, settings, iterations, returns or {})
    log = EvaluationLog(path)
    for after in evaluated:
        progress = Progress(path.name, "abc", after, version=after + 1, env_steps=STEPS * after)
        results = [
            result(task, n, n < (solved or {}).get(after, after))
            for task in tasks
            for n in range(10)
        ]
        log.write(count(results, progress, []), EVALUATION_SECONDS)
    return path


def _write_iterations(
    path: Path, config: RunConfig, iterations: int, returns: dict[int, int]
) -> None:
    generator = np.random.default_rng(config.seed)
    log = MetricsLog(path, CollectorRegistry())
    log.resume(None)
    curriculum = Curriculum(config.tasks.indices, config.curriculum)
    actions = ActionLog(path)
    for number in range(iterations):
        actions.write(number, [acted(generator, number) for _ in range(EPISODES)])
        for task in config.tasks.indices:
            curriculum.record(task, success=number > 2)
        metrics = {name: 0.5 for name in METRICS if name != "rolled_back_to"} | {
            "rate_scale": 1.0,
            "episodes": EPISODES,
            "success_rate": 0.1 + 0.1 * number,
            "logprob_gap": 1e-6,
            "missing_episodes": 1,
            "seconds_iteration": SECONDS,
            "seconds_rollout": 30,
            "seconds_in_episodes": 100,
            "seconds_waiting_for_policy": 40,
            "seconds_learning": 20,
            "seconds_inference": 5,
            "seconds_checkpoint": 2,
            "seconds_publish": 3,
            "entropy": 5.5 - 0.1 * number + 0.01 * generator.random(),
            "completed_timestamp_seconds": 1.75e9 + SECONDS * number,
        }
        if config.reward.model == "outcome":
            metrics = {name: one for name, one in metrics.items() if "dense" not in name}
        if number in returns:
            metrics |= {"rolled_back_to": returns[number], "rate_scale": 0.5}
        unknown = CRITICS if config.trainer.groups else GROUPS
        if number == 0:  # the critic's warm-up
            unknown = {*unknown, "approximate_kl", "largest_kl", "clip_fraction"}
        metrics = {name: one for name, one in metrics.items() if name not in unknown}
        iteration = trainer_pb2.Iteration(
            iteration=number,
            policy_version=number + 1,
            env_steps=STEPS * (number + 1),
            metrics=metrics | curriculum.metrics(),
        )
        log.write(iteration)
    log.close()


def acted(generator: np.random.Generator, iteration: int) -> rollout_pb2.Trajectory:
    """An episode of four actions, which drift to the right as training goes on."""
    values = generator.normal(0.1 * iteration, 0.2, size=(4, 7))
    steps = [rollout_pb2.Step(action=policy_pb2.Action(values=row)) for row in values]
    return rollout_pb2.Trajectory(steps=steps)


def result(task: int, init_state: int, success: bool) -> EpisodeResult:
    """An evaluation's episode."""
    return EpisodeResult(
        task=task,
        init_state=init_state,
        instruction=f"push <b>block {task}</b>",
        success=success,
        actions=8,
        seconds=1.0,
        policy_version=1,
        digest="",
    )


def evaluate(run: Path, folder: Path, *, films: bool = True) -> Path:
    """What `vlarl eval --run` leaves: one success, one failure, and films of both."""
    opened = EvaluationFolder(folder, {"run": run.name, "profile": "faithful"})
    for init_state, success in enumerate((True, False)):
        opened.add(result(0, init_state, success))
        if films:
            (folder / "videos").mkdir(exist_ok=True)
            end = "success" if success else "failure"
            frames = (np.full((64, 48, 3), 20 * n, np.uint8) for n in range(5))
            write_film(folder / f"videos/task-00_init-0{init_state}_{end}.mp4", frames, 5)
    progress = Progress(run.name, "abc", iteration=6, version=7, env_steps=600)
    opened.write_score(count(opened.results, progress, []), ended=True)
    return folder
