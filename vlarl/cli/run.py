"""`vlarl train` and `vlarl up`: a run's trainer, or the whole stack on one machine."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from vlarl.cli.options import (
    Metrics,
    Overrides,
    Verbose,
    one_sentence_errors,
    read_config,
)
from vlarl.config import ConfigError, RunConfig, dump_toml
from vlarl.logs import configure_logging

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="The run's TOML file, e.g. configs/embedded.toml.")
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", help="Folder of a run to go on with, from its last checkpoint."),
]
RunDirectory = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Folder of the new run; default: runs/NAME-TIME."),
]


def train(
    config: ConfigArgument = None,
    resume: Resume = None,
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    metrics_listen: Metrics = None,
    verbose: Verbose = False,
) -> None:
    """Train: issue episodes, learn from the scored ones, publish weights, over and over.

    Needs the other services running (`vlarl up` starts them all). Under torchrun, every process
    runs this command; rank 0 talks to the queue and the policy servers:

        torchrun --nproc-per-node 8 -m vlarl train configs/run.toml --run-dir runs/mine
    """
    configure_logging(verbose)
    with one_sentence_errors():
        settings, directory = _choose_run(config, resume, run_dir, overrides)
        from services.trainer.main import run

        run(settings, directory, metrics_listen=metrics_listen)


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
        settings, directory = _choose_run(config, resume, run_dir, overrides)
        from vlarl.stack.supervisor import run_stack

        code = asyncio.run(run_stack(settings, directory))
    raise typer.Exit(code)


def _choose_run(
    config: Path | None, resume: Path | None, run_dir: Path | None, overrides: list[str] | None
) -> tuple[RunConfig, Path]:
    """The configuration and folder of a new run, or of the one to go on with."""
    if resume is not None:
        if config is not None or run_dir is not None:
            raise ConfigError("--resume takes the run's own configuration; use --set to change it")
        saved = resume / "config.toml"
        if not saved.exists():
            raise ConfigError(f"{resume}: no run here (config.toml is missing)")
        return read_config(saved, overrides), resume
    if config is None:
        raise ConfigError("name a configuration, e.g. configs/embedded.toml, or --resume RUN")
    settings = read_config(config, overrides)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    if run_dir is None and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("under torchrun, name the run's folder with --run-dir")
    directory = run_dir or Path("runs") / f"{settings.name}-{stamp}"
    # The folder's name is the run's id: unique, so that runs may share a queue and policy servers.
    settings = settings.model_copy(update={"name": directory.name})
    if os.environ.get("RANK", "0") != "0":
        return settings, directory
    if (directory / "config.toml").exists():
        raise ConfigError(f"{directory} holds a run already; go on with --resume {directory}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(dump_toml(settings))
    return settings, directory
