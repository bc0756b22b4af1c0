"""`vlarl status`: a run at a glance."""

from __future__ import annotations

import asyncio
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from vlarl.config import ConfigError
from vlarl.invocation import invocation
from vlarl.terminal import PlainConsole, Whole, styled
from vlarl_cli.options import ConfigFile, Overrides, one_sentence_errors, read_config, read_saved
from vlarl_cli.runs import saved_config

if TYPE_CHECKING:
    from vlarl.queue.backlog import Backlog
    from vlarl.trainer.v1 import trainer_pb2
    from vlarl_cli.overview import Overview

_NUMBERS = (
    ("success_rate", "success", ".0%"),
    ("episode_return", "return", ".3f"),
    ("episode_actions", "length", ".1f"),
    ("approximate_kl", "KL", ".2g"),
    ("entropy", "entropy", ".3f"),
    ("groups_kept", "groups kept", ".0f"),
    ("episodes_per_learned", "episodes for one learned from", ".1f"),
    ("explained_variance", "explained variance", ".2f"),
    ("logprob_gap", "log-prob gap", ".1e"),
    ("dense_success_correlation", "reward with success", "+.2f"),
)


def status(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run that `vlarl up` started on this machine.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    watch: Annotated[
        float | None,
        typer.Option(min=0.5, metavar="SECONDS", help="Look again and again, until Ctrl-C."),
    ] = None,
) -> None:
    """Show a run at a glance: where it stands, which services answer, what waits in the queue.

    Of `vlarl up` name the run's folder; of services elsewhere the configuration that says where
    trainer, policy servers and queue are:

        vlarl status runs/reach-20260101-120000 --watch 2

        vlarl status --config run.toml --set policy.addresses=dns:///policy:50051

    The exit code is 1 if something doesn't answer.
    """
    with one_sentence_errors():
        if (run is None) == (config is None):
            raise ConfigError("name one: a run's folder, or --config")
        overview = _look(run, config, overrides)
        if run is not None and not any(replica.serving for replica in overview.replicas):
            command, folder = invocation(), shlex.quote(str(run))
            raise ConfigError(
                f"nothing of {run} runs now; `{command} report {folder}` shows what it did, "
                f"`{command} up --resume {folder}` goes on"
            )
        if watch is None:
            PlainConsole().print(_page(overview))
            raise typer.Exit(0 if overview.well else 1)
        with Live(_page(overview), console=PlainConsole(), auto_refresh=False) as live:
            while True:
                time.sleep(watch)
                live.update(_page(_look(run, config, overrides)), refresh=True)


def _look(run: Path | None, file: Path | None, overrides: list[str] | None) -> Overview:
    """Everything anew: replicas come and go, and a run that is resumed has other addresses."""
    from vlarl_cli.overview import addresses_of_config, addresses_of_run, look

    if run is None:
        config = read_config(file, overrides)
    else:
        config = read_saved(saved_config(run), overrides)
    try:
        found = addresses_of_config(config) if run is None else addresses_of_run(run)
    except OSError as error:
        raise ConfigError(f"policy.addresses {config.policy.addresses}: {error}") from error
    return asyncio.run(look(found, config))


def _page(overview: Overview) -> RenderableType:
    parts: list[RenderableType] = []
    if overview.run is None:
        parts.append(styled(("the trainer doesn't answer", "red"), ": ended, or not there yet"))
    else:
        parts += _run_lines(overview.run)
    table = Table("service", "address", "state", "")
    for replica in overview.replicas:
        state = styled(("serving", "green") if replica.serving else ("away", "red"))
        table.add_row(replica.service, replica.address, state, replica.says)
    parts.append(Whole(table))
    if overview.queue is None:
        parts.append(styled((f"the queue doesn't answer: {overview.queue_error}", "red")))
    else:
        parts.append(_queue_table(overview.queue))
    return Group(*parts)


def _run_lines(run: trainer_pb2.GetStatusResponse) -> list[RenderableType]:
    from vlarl.trainer.v1 import trainer_pb2

    state = trainer_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
    done = run.latest.iteration + 1 if run.HasField("latest") else 0
    lines: list[RenderableType] = [
        styled(
            (run.run_id, "bold"),
            f"  {state}  {done} of {run.iterations} iterations  policy version "
            f"{run.policy_version}  {run.outstanding_episodes} episodes outstanding",
        )
    ]
    if done:
        metrics = run.latest.metrics
        shown = [
            f"{label} {metrics[name]:{form}}" for name, label, form in _NUMBERS if name in metrics
        ]
        shown.append(f"{run.latest.env_steps:,} control steps")
        shown.append(f"{metrics['seconds_iteration']:.0f} s an iteration")
        lines.append("  ".join(shown))
    return lines


def _queue_table(queue: Backlog) -> Whole:
    table = Table("queue", "waiting", "in work")
    for stream, waiting in queue.waiting.items():
        table.add_row(stream, str(waiting), str(queue.in_work[stream]))
    dead = str(queue.dead_letters)
    table.add_row("given up", styled((dead, "red" if queue.dead_letters else "")), "")
    return Whole(table)
