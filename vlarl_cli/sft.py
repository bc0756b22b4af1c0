"""`vlarl sft`: supervised fine-tuning on demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlarl.config import SftConfig
from vlarl_cli.evaluate import evaluation_config
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import Overrides, Verbose, one_sentence_errors
from vlarl_cli.runs import Resume, RunDirectory, check_sources, chosen_run, first_rank

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
    """Looks whether what the run needs is there: datasets, a checkpoint, tasks to evaluate on."""
    check_sources(settings)
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


def _needs(settings: SftConfig) -> PolicyNeeds:
    """What the policy that is trained will read."""
    from vlarl.models.needs import PolicyNeeds
    from vlarl.models.registry import policy_spec

    if (family := settings.family) is not None:
        return PolicyNeeds(family.cameras, family.proprio, family.chunk)
    if settings.checkpoint is None:
        return PolicyNeeds()
    return PolicyNeeds.of_checkpoint(policy_spec(settings.checkpoint))
