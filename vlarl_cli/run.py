"""`vlarl train` and `vlarl up`: a run's trainer, or the whole stack on one machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlarl.config import ConfigError, RunConfig
from vlarl.config.checkpoints import with_checkpoints
from vlarl.errors import FatalError
from vlarl.weights.hub import folder_of
from vlarl.weights.hub_names import hub_name
from vlarl_cli.extras import check_logging, missing_packages
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import Metrics, Overrides, Verbose, one_sentence_errors, read_section
from vlarl_cli.runs import CONFIG, Resume, RunDirectory, check_reward, chosen_run, first_rank

if TYPE_CHECKING:
    from vlarl.env.v1 import env_pb2

_LOG = logging.getLogger(__name__)
_TRAINERS = ("policy.checkpoint",)
"""The reward model is loaded by the reward servers alone."""

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="The run's TOML file, e.g. configs/embedded.toml.")
]
Places = Annotated[
    list[str] | None,
    typer.Option(
        "--here",
        metavar="SECTION.KEY=VALUE",
        hidden=True,
        help="As --set, for this start alone: where `vlarl up` put queue and services.",
    ),
]


def train(
    config: ConfigArgument = None,
    resume: Resume = None,
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    metrics_listen: Metrics = None,
    places: Places = None,
    verbose: Verbose = False,
) -> None:
    """Train: issue episodes, learn from the scored ones, publish weights, over and over.

    Needs the other services running (`vlarl up` starts them all). Under torchrun, every process
    runs this command; rank 0 talks to the queue and the policy servers:

        torchrun --nproc-per-node 8 -m vlarl train configs/run.toml --run-dir runs/mine
    """
    configure_logging(verbose)
    with one_sentence_errors():
        chosen = chosen_run(
            RunConfig,
            "vlarl train",
            config,
            resume,
            run_dir,
            overrides,
            partial(_check_trainer, places),
            _TRAINERS,
        )
        with chosen as (settings, directory):
            if places:
                settings = read_section(RunConfig, directory / "config.toml", places)
                settings = with_checkpoints(settings, folder_of, _TRAINERS)
            elif first_rank():
                _LOG.info("%s", _usage(settings))
            from vlarl_trainer.main import run

            run(settings, directory, metrics_listen=metrics_listen)
            if first_rank() and settings.logging.wandb != "off":
                _attach_report(settings, directory)


def _attach_report(settings: RunConfig, directory: Path) -> None:
    """Puts the page of `vlarl report` into the run on wandb. What fails there fails no training."""
    from vlarl.learning.wandb_run import WandbRun, wandb_mode

    if wandb_mode(settings.logging) == "off":
        return
    if missing := missing_packages():
        _LOG.warning("wandb gets no report: %s", missing)
        return
    from vlarl_jobs.report.report import write_report

    try:
        page, _ = write_report([directory], None)
    except FatalError as error:
        _LOG.warning("wandb gets no report: %s", error)
        return
    run = WandbRun(directory, settings)
    run.attach(page)
    run.close()


def begin(
    config: Annotated[Path, typer.Argument(help="The run's TOML file.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Folder of the run.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Begin a run and start nothing: look at all it needs, download its checkpoints, write its
    folder.

    Services that start apart from one another then have one configuration, RUN/config.toml, and
    `vlarl train --resume RUN` is the trainer. A run that has begun goes on as it is.
    """
    configure_logging(verbose)
    with one_sentence_errors():
        if (run_dir / CONFIG).exists():
            # Without its lock: its trainer may be at work.
            settings = with_checkpoints(_going_on(run_dir, config, overrides), folder_of)
            _check_begun(settings)
            _LOG.info("%s goes on; %s", run_dir, _usage(settings))
            return
        chosen = chosen_run(
            RunConfig, "vlarl begin", config, None, run_dir, overrides, _check_begun
        )
        with chosen as (settings, directory):
            _LOG.info("%s begins; %s", directory, _usage(settings))


def _going_on(run_dir: Path, config: Path, overrides: list[str] | None) -> RunConfig:
    """The configuration of a run that has begun.

    Raises:
        ConfigError: now another checkpoint is asked for than the one with which it began.
    """
    saved = read_section(RunConfig, run_dir / CONFIG, [])
    asked = read_section(RunConfig, config, overrides).policy.checkpoint
    began = saved.policy.checkpoint
    names = hub_name(asked), hub_name(began)
    same = asked == began
    if names[0] is not None and names[1] is not None and not names[0].fixed:
        same = names[0].model == names[1].model  # the branch may have moved since
    if not same:
        raise ConfigError(
            f"{run_dir} began with {began}, and now policy.checkpoint is {asked}: leave it so, or "
            "begin another run in another folder (VLARL_RUN_NAME in docker-compose.yml)"
        )
    return saved


def _check_begun(settings: RunConfig) -> None:
    """Looks at the suite's name, the policy and the reward model."""
    from vlarl.config.suites import check_suite

    check_suite(settings.env, settings.tasks.suite)
    check_checkpoints(settings)


def up(
    config: ConfigArgument = None,
    resume: Resume = None,
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Run the whole stack on this machine: queue, policy, env, reward and trainer.

    Waits for health, shows the trainer's progress, writes each service's log to RUN/logs, and
    stops everything when the trainer ends, on Ctrl-C, or when a service dies.
    """
    configure_logging(verbose)
    with one_sentence_errors():
        chosen = chosen_run(RunConfig, "vlarl up", config, resume, run_dir, overrides, _check_stack)
        with chosen as (settings, directory):
            _LOG.info("%s", _usage(settings))
            from vlarl.launch.supervisor import run_stack

            code = asyncio.run(run_stack(settings, directory))
    raise typer.Exit(code)


def _check_stack(settings: RunConfig) -> None:
    """Finds out what would otherwise end a service once all have been started."""
    check_logging(settings.logging)
    from vlarl.launch.tasks import choose_tasks, described, suite_tasks

    tasks = suite_tasks(settings.env, settings.tasks.suite)
    chosen = choose_tasks(tasks, settings.tasks.indices, settings.evaluation.states_needed)
    check_checkpoints(settings, chosen)
    _LOG.info("the run is on %s", described(chosen, tasks))


def check_checkpoints(settings: RunConfig, tasks: Sequence[env_pb2.TaskDescription] = ()) -> None:
    """Looks at a run's policy and reward model.

    Args:
        settings: the run's.
        tasks: those that are meant, where simulators have been asked.

    Raises:
        FatalError: one can't be loaded, has no statistics for the run's actions, or doesn't fit the
            rest; or there is no task to train on.
    """
    _usage(settings, tasks)
    check_reward(settings)


def _usage(settings: RunConfig, tasks: Sequence[env_pb2.TaskDescription] = ()) -> str:
    """How the run uses its policy. Before that, makes sure that there are tasks, a checkpoint, and
    in it the statistics that actions are in.
    """
    from vlarl.models.meaning import chosen_unnorm_key
    from vlarl.models.needs import (
        PolicyNeeds,
        check_mini_batch,
        check_needs,
        check_recordable,
        check_reward_form,
    )
    from vlarl.models.registry import check_policy_checkpoint

    if not settings.tasks.indices:
        raise ConfigError("tasks.indices is empty: name the tasks to train on, e.g. [0, 1, 2]")
    model = check_policy_checkpoint(settings.policy.checkpoint)
    key = chosen_unnorm_key(settings, model)
    needs = PolicyNeeds.of_checkpoint(model)
    check_needs(settings, needs, tasks)
    check_mini_batch(settings, needs, tasks)
    check_reward_form(settings.reward, needs)
    if settings.trainer.record_rollouts:
        check_recordable(needs, "trainer.record_rollouts")
    return f"{model.name}: {model.usage(key, settings.policy.center_crop)}"


def _check_trainer(places: list[str] | None, settings: RunConfig) -> None:
    """Looks at the suite's name, for the policy, and for the queue where nobody has just started
    one.
    """
    from vlarl.config.suites import check_suite
    from vlarl.queue.rollout_queue import check_queue

    check_logging(settings.logging)
    # The simulators' machine knows more of it, and may be another one.
    check_suite(settings.env, settings.tasks.suite)
    _usage(settings)
    if first_rank() and not places:
        asyncio.run(check_queue(settings.queue))
