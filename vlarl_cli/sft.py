"""`vlarl sft`: supervised fine-tuning on demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlarl.config import ConfigError, SftConfig
from vlarl.config.sft import NO_TOKENS_READ
from vlarl_cli.evaluate import evaluation_config
from vlarl_cli.extras import check_logging
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import Overrides, Verbose, one_sentence_errors
from vlarl_cli.runs import Resume, RunDirectory, chosen_run, first_rank

if TYPE_CHECKING:
    from vlarl.models.needs import PolicyNeeds

SftConfigArgument = Annotated[
    Path | None, typer.Argument(help="The run's TOML file, e.g. configs/sft-reach.toml.")
]


def sft(
    config: SftConfigArgument = None,
    resume: Resume = None,
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a policy on demonstrations, by its family's recipe; writes RUN/checkpoint.

    Killed at any moment, it goes on with --resume RUN. Under torchrun every process runs this
    command, and all must see the same folders:

        torchrun --nproc-per-node 8 -m vlarl sft configs/sft-7b.toml --run-dir runs/mine
    """
    configure_logging(verbose)
    with one_sentence_errors():
        chosen = chosen_run(SftConfig, "vlarl sft", config, resume, run_dir, overrides, _check)
        with chosen as (settings, directory):
            from vlarl_jobs.sft.main import run

            run(settings, directory)


def _check(settings: SftConfig) -> None:
    """Looks whether what the run needs is there and goes together: a model to start from, datasets,
    tasks to evaluate on.
    """
    check_logging(settings.logging)
    _check_start(settings)
    _check_demonstrations(settings)
    simulation = settings.simulation
    if simulation is None or not first_rank():
        return
    from vlarl.launch.tasks import choose_tasks, suite_tasks
    from vlarl.models.needs import check_needs

    # As `vlarl eval CONFIG` reads it.
    episodes, overrides = simulation.episodes_per_task, list(simulation.overrides)
    run, _ = evaluation_config(simulation.config, None, None, None, None, episodes, overrides)
    tasks = choose_tasks(suite_tasks(run.env, run.tasks.suite), run.tasks.indices, episodes)
    check_needs(run, _needs(settings), tasks)


def _check_start(settings: SftConfig) -> None:
    """The checkpoint or the new model, and whether it can become what `[family]` makes of it."""
    from vlarl.models.openvla.oft import OPENVLA
    from vlarl.models.openvla.tiny import tiny_config
    from vlarl.models.openvla_oft.starting import check_beginning
    from vlarl.models.registry import check_policy_checkpoint, policy_family

    if settings.checkpoint is not None:
        named = check_policy_checkpoint(settings.checkpoint).family
        family = policy_family(settings.checkpoint)
        if settings.family is not None and named != OPENVLA:
            raise ConfigError(
                f"{settings.checkpoint} is of the family {named} already, and [family] is for an "
                "OpenVLA: leave [family] out"
            )
        if settings.input_sigma and not family.reads_action_tokens:
            raise ConfigError(f"input_sigma: {NO_TOKENS_READ}")
        sizes = family.sizes
    else:
        assert settings.model is not None  # noqa: S101 - the configuration has one or the other
        sizes = tiny_config(**settings.model.model_dump())
    if settings.family is not None:
        check_beginning(sizes, **settings.family.model_dump(exclude={"name"}))


def _check_demonstrations(settings: SftConfig) -> None:
    """The datasets, and whether they have what the recipe learns from."""
    from vlarl.data.dataset import check_dataset
    from vlarl.models.registry import policy_spec
    from vlarl_jobs.sft.reading import check_demonstrations, require_poses

    needs = _needs(settings)
    for folder in settings.data.datasets:
        check_dataset(folder, needs.cameras, needs.proprio)
    tasks = check_demonstrations(settings.data, needs.chunk, seed=settings.seed)
    if settings.pretrain is not None:
        require_poses([name for task in tasks for name in task.pose_names])
    if settings.checkpoint is not None and settings.data.statistics == "checkpoint":
        spec = policy_spec(settings.checkpoint)
        for task in tasks:
            spec.statistics(task.suite)


def _needs(settings: SftConfig) -> PolicyNeeds:
    """What the policy that is trained will read."""
    from vlarl.models.needs import PolicyNeeds
    from vlarl.models.registry import policy_spec

    if (family := settings.family) is not None:
        return PolicyNeeds(family.cameras, family.proprio, family.chunk)
    if settings.checkpoint is None:
        return PolicyNeeds()
    return PolicyNeeds.of_checkpoint(policy_spec(settings.checkpoint))
