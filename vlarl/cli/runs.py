"""Which run a command is about: a new one in a folder of its own, or one to go on with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vlarl.cli.options import read_section
from vlarl.config import ConfigError, RewardModelConfig, RunConfig, SftConfig, save_config
from vlarl.config.files import runs_inside

R = TypeVar("R", RunConfig, SftConfig, RewardModelConfig)

Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="Folder of a run to go on with, from its last checkpoint; --set changes its "
        "configuration from there on.",
    ),
]
RunDirectory = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Folder of the new run; default: runs/NAME-TIME."),
]


def choose_run(
    root: type[R],
    config: Path | None,
    resume: Path | None,
    run_dir: Path | None,
    overrides: list[str] | None,
    check: Callable[[R], object] = lambda _: None,
) -> tuple[R, Path]:
    """The configuration and folder of a new run, or of the one to go on with.

    Args:
        root: what kind of run.
        config: TOML file of a new one.
        resume: folder of one to go on with.
        run_dir: folder of the new one.
        overrides: of --set.
        check: raises what is wrong with the configuration, before anything is written.

    Raises:
        ConfigError: there is no such run, or there is one already where a new one should begin.
    """
    if resume is not None:
        if config is not None or run_dir is not None:
            raise ConfigError("--resume takes the run's own configuration; use --set to change it")
        saved = saved_config(resume)
        settings, before = read_section(root, saved, overrides), read_section(root, saved, None)
        if (settings.name, settings.seed) != (before.name, before.seed):
            raise ConfigError("a run that goes on keeps its name and its seed; begin a new one")
        check(settings)
        if overrides and first_rank():
            # The run's processes, and whoever reads it later, know the configuration from there.
            save_config(settings, resume)
        return settings, resume
    if config is None:
        raise ConfigError("name a configuration of configs/, or --resume RUN")
    settings = read_section(root, config, overrides)
    check(settings)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    if run_dir is None and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("under torchrun, name the run's folder with --run-dir")
    directory = run_dir or Path("runs") / f"{settings.name}-{stamp}"
    # The folder's name is the run's id: unique, so that runs may share a queue and policy servers.
    settings = settings.model_copy(update={"name": directory.name})
    if first_rank():
        _begin(settings, directory)
    return settings, directory


def saved_config(run: Path) -> Path:
    """The configuration that a run's folder holds.

    Raises:
        ConfigError: it is no run's folder.
    """
    saved = run / "config.toml"
    if not saved.exists():
        raise ConfigError(f"{run}: no run here (config.toml is missing){runs_inside(run)}")
    return saved


def check_sources(settings: SftConfig | RewardModelConfig) -> None:
    """Looks whether there are datasets, and a checkpoint to start from where one is named.

    Raises:
        FatalError: something is missing, or doesn't go together.
    """
    from vlarl.demonstrations import check_dataset
    from vlarl.openvla.folder import check_folder, check_whole, is_openvla

    for folder in settings.data.datasets:
        check_dataset(folder)
    if isinstance(settings, SftConfig):
        if settings.checkpoint is not None:
            check_folder(settings.checkpoint)
        return
    check_whole(settings.checkpoint)
    openvla = is_openvla(settings.checkpoint)
    if openvla and settings.policy is not None:
        raise ConfigError("policy: an OpenVLA judges its own action tokens; leave it out")
    if not openvla:
        if settings.policy is None or settings.mode != "lora":
            raise ConfigError(
                f"{settings.checkpoint} is no OpenVLA: name the one whose actions are judged in "
                '`policy`, and set mode = "lora"'
            )
        check_folder(settings.policy)


def first_rank() -> bool:
    """Whether this is the process that speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def _begin(settings: RunConfig | SftConfig | RewardModelConfig, directory: Path) -> None:
    """Makes a new run's folder, with its configuration."""
    if (directory / "config.toml").exists():
        raise ConfigError(f"{directory} holds a run already; go on with --resume {directory}")
    save_config(settings, directory)
