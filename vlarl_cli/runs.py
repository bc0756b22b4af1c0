"""Which run a command is about: a new one in a folder of its own, or one to go on with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vlarl.config import (
    ConfigError,
    ProcessRewardConfig,
    RewardModelConfig,
    RunConfig,
    SftConfig,
    save_config,
)
from vlarl.config.base import NAME_PATTERN
from vlarl.config.checkpoints import CHECKPOINTS, with_checkpoints
from vlarl.config.files import read_toml, runs_inside, with_overrides
from vlarl.config.resuming import check_algorithm
from vlarl.ownership import owned
from vlarl.weights.hub import folder_of, pinned, require_commit
from vlarl_cli.extras import check_logging
from vlarl_cli.learned import Configuration, check_contents, check_learned
from vlarl_cli.options import read_section

CONFIG = "config.toml"
EVALUATION = "evaluation.json"
_LONGEST_NAME = 128
_UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""A variable of the environment that its processes have."""

R = TypeVar("R", RunConfig, SftConfig, RewardModelConfig)

Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="Folder of a run to go on with, from its last checkpoint; --set changes its "
        "configuration from there on, where docs/configuration.md doesn't say `fixed`.",
    ),
]
RunDirectory = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Folder of the new run; default: runs/NAME-TIME."),
]


@contextlib.contextmanager
def chosen_run(
    root: type[R],
    what: str,
    config: Path | None,
    resume: Path | None,
    run_dir: Path | None,
    overrides: list[str] | None,
    check: Callable[[R], object] = lambda _: None,
    needed: Iterable[str] = CHECKPOINTS,
) -> Iterator[tuple[R, Path]]:
    """The configuration and folder of a new run, or of the one to go on with, which nobody else may
    write until the end of the block. Nothing is written where anything is refused.

    What is saved with the run has the names of its checkpoints, each at a commit; what the block
    gets has their folders.

    Args:
        root: what kind of run.
        what: the command, for whoever finds the folder in use.
        config: TOML file of a new one.
        resume: folder of one to go on with.
        run_dir: folder of the new one.
        overrides: of --set.
        check: raises what else is wrong with the configuration.
        needed: keys of the checkpoints that the command loads.

    Raises:
        ConfigError: there is no such run, or there is one already where a new one should begin, or
            what has been learned there would mean something else.
        OwnedError: another process has the folder.
    """
    directory = _chosen_folder(root, config, resume, run_dir, overrides)
    with owned(directory, what) if first_rank() else contextlib.nullcontext():
        if resume is None:
            _check_vacant(directory)  # nobody has come in between
            named = read_section(root, config, overrides)
            named = named.model_copy(update={"name": run_id_of(directory)})
        else:
            saved = read_toml(directory / CONFIG)
            check_algorithm(directory, saved, with_overrides(saved, overrides or ()))
            named = read_section(root, directory / CONFIG, overrides)
        named = _at_commits(named)
        show = os.environ.get("LOCAL_RANK", "0") == "0"  # a machine's other ranks wait for it
        settings = with_checkpoints(named, partial(folder_of, show=show), needed)
        check_learned(directory, settings)
        check_contents(directory, settings)
        check(settings)
        if first_rank() and (resume is None or overrides):
            # The run's processes, and whoever reads it later, know the configuration from there.
            save_config(named, directory)
        yield settings, directory


def _at_commits(settings: R) -> R:
    """The configuration with the commits that its checkpoints' names mean now."""

    def at_commit(checkpoint: Path) -> Path:
        if _UNDER_TORCHRUN in os.environ:
            # Each rank would ask by itself, and a branch may move between two questions.
            require_commit(checkpoint, "torchrun's ranks must all have the same weights")
        return pinned(checkpoint)

    return with_checkpoints(settings, at_commit)


def _chosen_folder(
    root: type[R],
    config: Path | None,
    resume: Path | None,
    run_dir: Path | None,
    overrides: list[str] | None,
) -> Path:
    """The folder that the arguments name, after a first look at it."""
    if resume is not None:
        if config is not None or run_dir is not None:
            raise ConfigError("--resume takes the run's own configuration; use --set to change it")
        return saved_config(resume).parent
    if config is None:
        raise ConfigError("name a configuration of configs/, or --resume RUN")
    directory = run_dir or _new_folder(read_section(root, config, overrides))
    _check_vacant(directory)
    return directory


def run_id_of(directory: Path) -> str:
    """The id of a new run in this folder: its name, where that may name keys of a queue and labels
    of metrics; else what is left of it, and a digest, so that two folders have two ids.
    """
    name = directory.name if directory.name not in ("", "..") else directory.resolve().name
    if re.fullmatch(NAME_PATTERN, name) and len(name) <= _LONGEST_NAME:
        return name
    latin = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-zA-Z0-9._-]+", "-", latin).strip("-._")[:_LONGEST_NAME]
    return f"{plain or 'run'}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _new_folder(settings: Configuration) -> Path:
    if _UNDER_TORCHRUN in os.environ:
        raise ConfigError("under torchrun, name the run's folder with --run-dir")
    return Path("runs") / f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _check_vacant(directory: Path) -> None:
    if (directory / EVALUATION).exists():
        raise ConfigError(f"{directory} holds an evaluation; name another --run-dir")
    if first_rank() and (directory / CONFIG).exists():
        again = shlex.quote(str(directory))
        raise ConfigError(f"{directory} holds a run already; go on with --resume {again}")


def saved_config(run: Path) -> Path:
    """The configuration that a run's folder holds.

    Raises:
        ConfigError: it is no run's folder.
    """
    saved = run / CONFIG
    if (run / EVALUATION).exists():
        raise ConfigError(
            f"{run}: an evaluation, not a run; name the run whose policy it evaluated"
        )
    if not saved.exists():
        raise ConfigError(f"{run}: no run here (config.toml is missing){runs_inside(run)}")
    return saved


def check_sources(settings: RewardModelConfig) -> None:
    """Looks for a reward model's datasets and checkpoint, and for wandb.

    Raises:
        FatalError: something is missing, or doesn't go together.
    """
    from vlarl.data.dataset import check_dataset
    from vlarl.models.registry import (
        check_any,
        check_policy_checkpoint,
        is_openvla,
        policy_family,
    )

    check_logging(settings.logging)
    for folder in settings.data.datasets:
        check_dataset(folder)
    check_any(settings.checkpoint)
    openvla = is_openvla(settings.checkpoint)
    if openvla:
        policy_family(settings.checkpoint).verdict_ids()
    if openvla and settings.policy is not None:
        raise ConfigError("policy: an OpenVLA judges its own action tokens; leave it out")
    if not openvla:
        if settings.policy is None or settings.mode != "lora":
            raise ConfigError(
                f"{settings.checkpoint} is no OpenVLA: name the one whose actions are judged in "
                '`policy`, and set mode = "lora"'
            )
        check_policy_checkpoint(settings.policy)


def check_reward(settings: RunConfig) -> None:
    """Looks at the process reward model, if a run has one.

    Raises:
        FatalError: it is none, or can't be loaded.
    """
    from vlarl.models.registry import check_reward_model

    if isinstance(settings.reward, ProcessRewardConfig):
        check_reward_model(settings.reward.checkpoint)


def first_rank() -> bool:
    """Whether this is the process that speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def folder_of_run(run: Path) -> Path:
    """The run's folder, named by itself or by one of its checkpoints."""
    return run.parents[1] if run.parent.name == "checkpoints" else run


def config_of_policy(run: Path) -> Path:
    """The configuration that was saved with a run, named by its folder or one of its checkpoints'.

    Raises:
        ConfigError: it is neither.
    """
    saved = folder_of_run(run) / "config.toml"
    if not saved.exists():
        raise ConfigError(f"{run}: neither a run nor one of its checkpoints ({saved} is missing)")
    return saved
