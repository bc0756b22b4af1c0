"""`vlarl eval`: checks everything, starts the services, puts an evaluator in the trainer's place.

Evaluation episodes need no rewards, so env workers pass them straight on and no reward server runs,
unless films are to show what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from vlarl.config import RunConfig, load_config
from vlarl.config.libero import base_suite
from vlarl.data.recording import RolloutRecorder
from vlarl.disk import explained
from vlarl.env.v1 import env_pb2
from vlarl.launch.supervisor import Stack, supervise
from vlarl.launch.tasks import simulator_identity
from vlarl.models.needs import PolicyNeeds, check_needs, check_recordable, check_reward_form
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl_jobs.evaluation.console import EvaluationDisplay
from vlarl_jobs.evaluation.evaluated_policy import EvaluatedPolicy, load_evaluated_policy
from vlarl_jobs.evaluation.evaluator import Evaluator, missing_episodes, protocol_of
from vlarl_jobs.evaluation.film import FilmMaker, Values
from vlarl_jobs.evaluation.folder import RUN_ID, EvaluationFolder, check_no_run
from vlarl_trainer.record.evaluation import count


def run(
    config: RunConfig,
    trained: Path | None,
    tasks: Sequence[env_pb2.TaskDescription],
    out: Path,
    *,
    best: bool,
    videos: int,
    record: bool,
    protocol: str,
    named: Path | None = None,
) -> int:
    """Evaluates a policy, or goes on with what `out` holds of it.

    Args:
        config: the base checkpoint, the suite, the episodes.
        trained: see `load_evaluated_policy`.
        tasks: those of the suite that are meant.
        out: the evaluation's folder.
        best: see `load_evaluated_policy`.
        videos: films of each task and outcome.
        record: whether OUT/rollouts becomes a dataset of the episodes.
        protocol: what the configuration follows, for people.
        named: what the command's --out says, where that is another folder than `out`.

    Returns:
        The exit code: 0 when every episode was counted, 1 when some were given up.

    Raises:
        FatalError: what was asked for can't be evaluated, or a service failed.
    """
    check_no_run(out)
    simulator = simulator_identity(config.env, config.tasks.suite)
    subject = load_evaluated_policy(config, trained, best=best)
    needs = PolicyNeeds.of_checkpoint(subject.model)
    check_needs(config, needs, tasks)
    if videos:
        check_reward_form(config.reward, needs)
    if record:
        check_recordable(needs, "--record")
    protocol += f"; {subject.model.usage(subject.unnorm_key, config.policy.center_crop)}"
    if not config.unnorm_key and not subject.unnorm_key.startswith(base_suite(config.tasks.suite)):
        protocol += f", the only ones it has, and none of {config.tasks.suite}"
    config = _settled(config, tasks)
    folder = EvaluationFolder(out, protocol_of(config, subject, simulator))
    folder.save_config(config)
    again = f"the same command with --out {shlex.quote(str(named or out))}"
    display = EvaluationDisplay(tasks, config, out, protocol, again)
    if not missing_episodes(config, subject, folder):
        evaluation = count(folder.results, subject.progress, [])
        folder.write_score(evaluation, ended=True)
        display.finish(evaluation)
        return 0
    film = None
    if videos:
        values = critic_of(config, subject)
        film = FilmMaker(out / "videos", videos, config.env.action_repeat, values)
    names = ("policy", "env", "reward") if videos else ("policy", "env")
    stack = Stack(config, out, names, lasting_queue=False)
    with explained(out), contextlib.closing(display):
        recorder = RolloutRecorder(out / "rollouts", config.env) if record else None
        work = _evaluate(stack, subject, folder, film, recorder, display)
        return asyncio.run(supervise(stack, work, again))


async def _evaluate(
    stack: Stack,
    subject: EvaluatedPolicy,
    folder: EvaluationFolder,
    film: FilmMaker | None,
    recorder: RolloutRecorder | None,
    display: EvaluationDisplay,
) -> int:
    await stack.start()
    here = load_config(folder.path / "config.toml", stack.overrides)
    evaluator = Evaluator(here, subject, folder, film, display, recorder)
    async with RolloutQueue(here.queue) as queue:
        evaluation = await stack.watching(evaluator.run(queue))
    display.finish(evaluation)
    return 1 if evaluation.missing else 0


def _settled(config: RunConfig, tasks: Sequence[env_pb2.TaskDescription]) -> RunConfig:
    """The configuration that the services get."""
    indices = tuple(task.task.index for task in tasks)
    return config.model_copy(
        update={
            "name": RUN_ID,
            "tasks": config.tasks.model_copy(update={"indices": indices}),
            # No trainer runs that a policy server could ask for weights.
            "policy": config.policy.model_copy(update={"trainer_address": None}),
        }
    )


def critic_of(config: RunConfig, subject: EvaluatedPolicy) -> Values | None:
    """The run's critic, on a model of its own; None: it has none, or it reads more than the frames
    of one camera.
    """
    has_critic = any(name.startswith("critic.") for name in subject.tensors)
    if not has_critic or len(subject.model.cameras) > 1 or subject.model.proprio_dim:
        return None
    from vlarl.learning.ranks import Ranks
    from vlarl_trainer.learner import Learner

    learner = Learner(
        config.policy.checkpoint,
        config.trainer,
        center_crop=subject.center_crop,
        seed=config.seed,
        ranks=Ranks.from_environment(),
    )
    learner.restore(dict(subject.tensors))
    return learner.values
