"""A run on Weights & Biases. Whatever fails there is said once, and training goes on without it.

    RUN/wandb/logged.jsonl          the run's id there, and which scalars it has been given
              offline-run-*, run-*  wandb's own: what was logged since a start

wandb drops rows that don't come in order. So each row's step is its number in logged.jsonl, and
what it stands over is a metric of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlarl.config import LoggingConfig, RewardModelConfig, RunConfig, SftConfig
from vlarl.json_lines import JsonLines

if TYPE_CHECKING:
    from wandb import Run

_LOG = logging.getLogger(__name__)
_KEPT_BACK = {"security", "queue"}
"""Sections that say nothing about learning, and much about where things are."""
_AXES = {"iteration", "env_steps"}
"""What curves of reinforcement learning stand over, on wandb any of them."""
_LONGEST_NAME = 100
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 20.0
_FLUSH_SECONDS = 1.0


def wandb_mode(config: LoggingConfig) -> str:
    """What is asked for, unless the environment's WANDB_MODE asks for less."""
    mode = os.environ.get("WANDB_MODE", "")
    if config.wandb == "off" or mode == "disabled":
        return "off"
    return "offline" if mode in ("offline", "dryrun") else config.wandb


class WandbRun:
    """One run there, however often training is gone on with."""

    def __init__(self, run_dir: Path, config: RunConfig | SftConfig | RewardModelConfig) -> None:
        """Begins it, or goes on with it. A server that isn't reached leaves it offline.

        Raises:
            DamagedFileError: a line of logged.jsonl can't be read.
        """
        self._folder = run_dir / "wandb"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(self._folder / "logged.jsonl")
        if not self._lines.rows:
            own = f"{config.name[:_LONGEST_NAME]}-{secrets.token_hex(4)}"
            self._lines.append({"id": own})
        self._logged = {_place(line) for line in self._lines.rows[1:]}
        self._defined: set[str] = set()
        self._run: Run | None = None
        self._begin(config, wandb_mode(config.logging))

    def log(self, axis: str, at: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars at a place of an axis, unless it has had them."""
        line = {"axis": axis, "at": at, "first": min(scalars, default="")}
        if self._run is None or _place(line) in self._logged:
            return
        step = len(self._lines.rows) - 1
        # First, so that whoever is killed here logs nothing twice.
        self._lines.append(line)
        self._logged.add(_place(line))
        self._attempt(lambda run: self._add(run, axis, {**scalars, axis: at}, step))

    def _add(self, run: Run, axis: str, row: Mapping[str, float], step: int) -> None:
        for name in sorted(row.keys() - self._defined):
            own = name == axis or name in _AXES
            run.define_metric(name, step_metric=None if own else axis, step_sync=False)
        self._defined |= row.keys()
        run.log(dict(row), step=step, commit=True)

    def attach(self, file: Path) -> None:
        """Adds a copy of a file, under its name."""

        def copy(run: Run) -> None:
            copied = shutil.copy(file, run.dir)
            run.save(copied, base_path=run.dir, policy="now")

        self._attempt(copy)

    def close(self) -> None:
        """Has wandb's process write or send what is left, for some seconds at most, and end."""
        self._attempt(_finish)
        self._run = None

    def _attempt(self, act: Callable[[Run], object]) -> None:
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            self._run = None
            _LOG.warning("wandb failed (%s); training goes on without it", _sentence(error))

    def _begin(self, config: RunConfig | SftConfig | RewardModelConfig, mode: str) -> None:
        try:
            self._run = self._init(config, mode)
            _LOG.info("wandb: %s", self._run.url or self._folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            if mode == "online":
                _LOG.warning(
                    "wandb can't be used online (%s); until the run's next start its records stay "
                    "in %s: `wandb sync` sends them",
                    _sentence(error),
                    self._folder,
                )
                with contextlib.suppress(Exception):
                    _end_process()
                self._begin(config, "offline")
            else:
                _LOG.warning("wandb failed (%s); training goes on without it", _sentence(error))

    def _init(self, config: RunConfig | SftConfig | RewardModelConfig, mode: str) -> Run:
        # It asks no questions, and reports no errors of its own to its makers.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wanted = config.logging
        begun: Any = wandb.init(
            mode="offline" if mode == "offline" else "online",
            dir=str(self._folder.parent),
            id=self._lines.rows[0]["id"],
            resume="allow",
            name=config.name,
            project=wanted.wandb_project,
            entity=wanted.wandb_entity,
            group=wanted.wandb_group,
            tags=wanted.wandb_tags,
            config=config.model_dump(mode="json", exclude=_KEPT_BACK),
            settings=wandb.Settings(**_SETTINGS),
        )
        return begun


_SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_save_requirements": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "init_timeout": _INIT_SECONDS,
    "finish_timeout": _FINISH_SECONDS,
    "x_transaction_log_flush_interval": _FLUSH_SECONDS,
}
"""Nothing is taken from the machine but its name: Prometheus has the rest."""


def _finish(run: Run) -> None:
    run.finish()
    _end_process()  # `finish` returns before the file is whole


def _end_process() -> None:
    """Waits for wandb's own process, which would otherwise take the run's id for one in use."""
    import wandb

    wandb.teardown()


def _place(line: Mapping[str, Any]) -> tuple[str, int, str]:
    return line["axis"], line["at"], line["first"]


def _sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
