"""`vlarl ablate`: variants of a run, times seeds, and the table that compares them."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlarl.config import AblationConfig, ConfigError
from vlarl.errors import FatalError
from vlarl.invocation import invocation
from vlarl.terminal import say, show
from vlarl_cli.extras import missing_packages
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import Overrides, Verbose, one_sentence_errors, read_section

if TYPE_CHECKING:
    from vlarl.env.v1 import env_pb2
    from vlarl_jobs.ablation.plan import Ablation

ConfigArgument = Annotated[
    Path, typer.Argument(help="TOML file of the table, e.g. configs/ablations-reach.toml.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of all runs and of the table; default: runs/NAME. What is there already is "
        "gone on with.",
    ),
]
TableOnly = Annotated[
    bool, typer.Option("--table", help="Start nothing: the table of what is there so far.")
]

_INTERRUPTED = 130


def ablate(
    config: ConfigArgument,
    out: Out = None,
    table: TableOnly = False,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Run a table of ablations: every variant with every seed, one `vlarl up` at a time.

    The file names a run's configuration, seeds, and what each variant changes:

        name = "mine"
        base = "reach.toml"
        seeds = [7, 8, 9]
        variants.full = {}
        variants.hot.trainer.temperature = 1.5

    All configurations, suites and checkpoints are checked before the first run
    starts. Each run has a folder, OUT/VARIANT-SEED, with its output in
    logs/up.log there; all variants of the first seed come first, so that a table
    stands early.

    Finished runs are skipped and begun ones gone on with: after Ctrl-C, a crash
    or a failure the same command goes on. A run that fails is recorded in
    OUT/failures.jsonl and doesn't stop the others; the exit code is 1 then.

    OUT/table.md and OUT/table.json are written after each run, OUT/report.html
    at the end; --table writes all three at any time. To try a table out:

        vlarl ablate TABLE.toml --set common.trainer.iterations=2 --out runs/try

    docs/ablations.md says how to read it.
    """
    configure_logging(verbose)
    with one_sentence_errors():
        from vlarl_jobs.ablation.plan import make_plan

        settings = read_section(AblationConfig, config, overrides)
        ablation = make_plan(settings, config, out or Path("runs") / settings.name)
        resume = _same_command(config, ablation.out, overrides)
        code = 0 if table else _run(ablation, resume, verbose=verbose)
        if code != _INTERRUPTED:
            _show(ablation)
    raise typer.Exit(code)


def _run(ablation: Ablation, resume: str, *, verbose: bool) -> int:
    from vlarl.launch.supervisor import supervise
    from vlarl_jobs.ablation.series import UP, Series

    _check_variants(ablation)

    async def supervised() -> int:
        series = Series(ablation, (*UP, "--verbose") if verbose else UP)
        return await supervise(series, series.run(), resume)

    return asyncio.run(supervised())


def _check_variants(ablation: Ablation) -> None:
    """Looks at what each variant runs on, as `vlarl up` will.

    Raises:
        ConfigError: something is missing, or can't be used; the message names the variant.
    """
    from vlarl.config.checkpoints import with_checkpoints
    from vlarl.launch import tasks
    from vlarl.weights.hub import folder_of
    from vlarl_cli.run import check_checkpoints

    # A process of the simulator's environment lists a suite, which takes seconds.
    listed: dict[object, list[env_pb2.TaskDescription]] = {}
    for planned in ablation.runs[: len(ablation.config.variants)]:
        config = planned.config
        suite = config.tasks.suite, tuple(sorted(config.env.bddl_directories.items()))
        try:
            if suite not in listed:
                listed[suite] = tasks.suite_tasks(config.env, config.tasks.suite)
            chosen = tasks.choose_tasks(
                listed[suite], config.tasks.indices, config.evaluation.states_needed
            )
            check_checkpoints(with_checkpoints(config, folder_of), chosen)
        except FatalError as error:
            raise ConfigError(f"variants.{planned.variant}: {error}") from error


def _same_command(config: Path, out: Path, overrides: list[str] | None) -> str:
    settings = [part for override in overrides or [] for part in ("--set", override)]
    arguments = shlex.join(["ablate", str(config), "--out", str(out), *settings])
    return f"{invocation()} {arguments}"


def _show(ablation: Ablation) -> None:
    """Prints and writes the table, and writes the page."""
    from vlarl_jobs.ablation.table import read_table, rich_table, write_table

    found = read_table(ablation)
    if not found.folders and not found.remarks:
        raise ConfigError(f"{ablation.out}: no run has begun; leave --table out to start")
    write_table(found, ablation.out)
    show(rich_table(found))
    for remark in found.remarks:
        say(remark)
    say(f"{ablation.out / 'table.md'}, table.json")
    if missing := missing_packages():
        say(f"no page: {missing}")
    elif found.folders:
        from vlarl_jobs.report.report import write_report

        page, pictures = write_report(found.folders, ablation.out / "report.html")
        say(f"{page}  (pictures: {pictures})")
