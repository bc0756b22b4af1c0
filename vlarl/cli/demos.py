"""`vlarl demos`: demonstrations of scripted experts, and datasets made from demonstrations."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from vlarl.cli import inspection
from vlarl.cli.groups import command_group
from vlarl.cli.options import OwnSuites, one_sentence_errors, own_suites
from vlarl.config import ConfigError
from vlarl.terminal import say, show

if TYPE_CHECKING:
    from services.env.suites import SuiteTask, TaskCatalog

app = command_group("Collect demonstrations, make datasets from them, look at them.")

Suite = Annotated[str, typer.Option(help="Suite, e.g. libero_spatial or reach.")]
Tasks = Annotated[str, typer.Option(help="Numbers of its tasks with commas; default: all.")]
Profile = Annotated[
    Literal["fast", "faithful"], typer.Option(help="The simulator's profile; docs/simulator.md.")
]
Processes = Annotated[int, typer.Option(min=1, help="Simulators that work at once.")]
Repeat = Annotated[
    int, typer.Option("--action-repeat", min=1, help="Control steps that each action is held.")
]
Noise = Annotated[
    float,
    typer.Option(min=0, help="Deviation of the noise on the translation of half the actions."),
]
Pace = Annotated[
    float,
    typer.Option(min=0.05, max=1, help="Share of its full speed at which the expert moves."),
]
MaxActions = Annotated[
    int | None, typer.Option(min=1, help="Longest episode; default: the suite's.")
]


@app.callback()
def in_simulator_environment() -> None:
    """Runs the command where LIBERO is, if this environment has none."""
    if find_spec("libero") is not None:
        return
    from vlarl.stack.supervisor import simulator_python

    with one_sentence_errors():
        python = str(simulator_python())
    os.execv(python, [python, "-m", "vlarl", *sys.argv[1:]])  # noqa: S606 - our own program


app.command("inspect")(inspection.inspect)


@app.command()
def collect(
    out: Annotated[Path, typer.Option(help="Folder for the .hdf5 files, one a task.")],
    suite: Suite,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task.")] = 50,
    tasks: Tasks = "",
    action_repeat: Repeat = 1,
    noise: Noise = 0.0,
    pace: Pace = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Placements and noise follow from it.")] = 7,
    max_actions: MaxActions = None,
    keep_failures: Annotated[
        bool, typer.Option("--keep-failures", help="Keep episodes that miss the goal, too.")
    ] = False,
    profile: Profile = "fast",
    processes: Processes = 2,
    bddl: OwnSuites = None,
) -> None:
    """Collect demonstrations of the scripted expert, from placements of its own.

    May be stopped at any time: the same command goes on where it was. Noise is carried out, not
    learnt: the actions without it are kept beside it.
    """
    from services.env.demonstrations.collecting import Wish, collect
    from services.env.demonstrations.orders import Settings

    with one_sentence_errors():
        catalog, folders = _catalog(bddl)
        settings = Settings(
            job="play",
            profile=profile,
            suites=folders,
            action_repeat=action_repeat,
            noise=noise,
            pace=pace,
            max_actions=max_actions,
        )
        wish = Wish(episodes, seed, keep_failures)
        chosen = _chosen(catalog, suite, tasks)
        for file in asyncio.run(collect(chosen, wish, settings, out, processes)):
            say(str(file))


@app.command()
def expert(
    suite: Suite,
    tasks: Tasks = "",
    states: Annotated[int, typer.Option(min=1, help="Official states of each task.")] = 3,
    action_repeat: Repeat = 1,
    noise: Noise = 0.0,
    pace: Pace = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 7,
    max_actions: MaxActions = None,
    profile: Profile = "fast",
    processes: Processes = 2,
    bddl: OwnSuites = None,
) -> None:
    """Measure the scripted expert: how often it succeeds from the official initial states."""
    from services.env.demonstrations.measuring import measure
    from services.env.demonstrations.orders import Settings

    with one_sentence_errors():
        catalog, folders = _catalog(bddl)
        settings = Settings(
            job="play",
            profile=profile,
            suites=folders,
            action_repeat=action_repeat,
            noise=noise,
            pace=pace,
            max_actions=max_actions,
        )
        chosen = _chosen(catalog, suite, tasks)
        results = asyncio.run(measure(chosen, states, seed, settings, processes))
    table = Table("task", "instruction", "succeeded", "control steps", "missed states")
    for result in results:
        steps = "" if result.median_length is None else f"{result.median_length:g}"
        succeeded = f"{len(result.lengths)}/{result.episodes}"
        missed = ", ".join(map(str, sorted(result.missed)))
        task = result.task
        table.add_row(str(task.index), task.instruction, succeeded, steps, missed)
    reached = sum(len(result.lengths) for result in results)
    table.add_row("", "all", f"{reached}/{sum(result.episodes for result in results)}", "", "")
    show(table)


@app.command()
def convert(
    demos: Annotated[Path, typer.Argument(help="An .hdf5 file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="The dataset's folder.")],
    camera: Annotated[str, typer.Option(help="Camera in the scene.")] = "agentview",
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the frame, pixels.")] = 256,
    crop: Annotated[
        str, typer.Option(metavar="TOP,LEFT,HEIGHT,WIDTH", help="Part of the frame to keep.")
    ] = "",
    action_repeat: Annotated[
        int | None,
        typer.Option(min=1, help="Control steps of the policy's actions; default: the files'."),
    ] = None,
    profile: Profile = "fast",
    processes: Processes = 2,
    bddl: OwnSuites = None,
) -> None:
    """Make a dataset for `vlarl sft`: render what the policy would have seen before each action.

    Takes what `vlarl demos collect` writes, and LIBERO's own files. May be stopped at any time.
    """
    from services.env.demonstrations.converting import common_repeat, convert, find_sources
    from services.env.demonstrations.orders import Settings

    with one_sentence_errors():
        catalog, folders = _catalog(bddl)
        sources = find_sources(demos, catalog)
        settings = Settings(
            job="render",
            profile=profile,
            suites=folders,
            action_repeat=common_repeat(sources, action_repeat),
            camera=camera,
            render_size=size,
            crop=_crop(crop, size),
        )
        asyncio.run(convert(sources, settings, out, processes))
        say(str(out))


def _catalog(bddl: list[str] | None) -> tuple[TaskCatalog, dict[str, Path]]:
    from services.env.suites import TaskCatalog

    folders = own_suites(bddl)
    return TaskCatalog(folders), folders


def _chosen(catalog: TaskCatalog, suite: str, numbers: str) -> list[SuiteTask]:
    from services.env.suites import UnknownTaskError

    try:
        if not numbers:
            return list(catalog.tasks(suite))
        return [catalog.find(suite, int(number)) for number in numbers.split(",")]
    except UnknownTaskError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"--tasks is numbers with commas, not {numbers!r}") from error


def _crop(text: str, size: int) -> tuple[int, int, int, int] | None:
    if not text:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"--crop is TOP,LEFT,HEIGHT,WIDTH in pixels, not {text!r}")
    top, left, height, width = map(int, parts)
    if not height or not width or top + height > size or left + width > size:
        raise ConfigError(f"--crop {text} must lie within the frame of {size} x {size} pixels")
    return top, left, height, width
