"""`vlarl demos`: demonstrations of scripted experts, and datasets made from demonstrations."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from vlarl.config import ConfigError
from vlarl.config.libero import has_simulator, simulator_environment
from vlarl.terminal import say, show
from vlarl_cli import inspection
from vlarl_cli.groups import command_group
from vlarl_cli.options import OwnSuites, one_sentence_errors, own_suites

if TYPE_CHECKING:
    from vlarl_env.simulators.libero.suites import SuiteTask
    from vlarl_env.simulators.registry import TaskCatalog

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
    if has_simulator():
        return
    from vlarl.launch.supervisor import simulator_python

    with one_sentence_errors():
        python = str(simulator_python())
    environment = simulator_environment(os.environ)
    os.execve(python, [python, "-m", "vlarl", *sys.argv[1:]], environment)  # noqa: S606 - our own


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
    from vlarl_jobs.demonstrations.collecting import CollectionRequest, collect
    from vlarl_jobs.demonstrations.messages import Settings

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
        wish = CollectionRequest(episodes, seed, keep_failures)
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
    from vlarl_jobs.demonstrations.measuring import measure
    from vlarl_jobs.demonstrations.messages import Settings

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
    demos: Annotated[
        Path, typer.Argument(help="An .hdf5 or .h5 file, or a folder of them and of folders.")
    ],
    out: Annotated[Path, typer.Option(help="The dataset's folder.")],
    camera: Annotated[
        list[str],
        typer.Option(help="Camera in the scene; repeat it for several, the main one first."),
    ] = ["agentview"],  # noqa: B006 - read alone
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the frame, pixels.")] = 256,
    crop: Annotated[
        str, typer.Option(metavar="TOP,LEFT,HEIGHT,WIDTH", help="Part of the frame to keep.")
    ] = "",
    action_repeat: Annotated[
        int | None,
        typer.Option(min=1, help="Control steps of the policy's actions; default: the files'."),
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="SUITE/NUMBER", help="The file's task, where it doesn't say.")
    ] = "",
    gripper: Annotated[
        Literal["closed-is-1", "open-is-1"] | None,
        typer.Option(help="What the gripper's 1 means; default: as the recorded fingers tell."),
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut movements off at 1, as the simulator does.")
    ] = False,
    action_scale: Annotated[
        str,
        typer.Option(
            metavar="FACTOR[,ROTATION]", help="Multiplies movements, e.g. 20,2 of metres, radians."
        ),
    ] = "",
    keep_failures: Annotated[
        bool, typer.Option("--keep-failures", help="Take episodes that miss the goal, too.")
    ] = False,
    trust_actions: Annotated[
        bool,
        typer.Option("--trust-actions", help="Take actions that the hand's motion contradicts."),
    ] = False,
    profile: Profile = "fast",
    processes: Processes = 2,
    bddl: OwnSuites = None,
) -> None:
    """Make a dataset for `vlarl sft`: render what the policy would have seen before each action.

    Takes what `vlarl demos collect` writes, LIBERO's own files, files regenerated from them, and
    robomimic's, where their task is known. What their numbers mean is told from how hand and
    fingers moved; what can't be told is refused. A demonstration that can't be used is left out
    and named. May be stopped at any time.
    """
    from vlarl_jobs.demonstrations.converting import common_repeat, convert, find_sources
    from vlarl_jobs.demonstrations.examining import Terms
    from vlarl_jobs.demonstrations.messages import Settings

    with one_sentence_errors():
        cut = _crop(crop, size)
        if len({*camera}) < len(camera):
            raise ConfigError(f"--camera names each once, not {', '.join(camera)}")
        terms = Terms(gripper, clip, _scale(action_scale), keep_failures, trust_actions)
        catalog, folders = _catalog(bddl)
        sources = find_sources(demos, catalog, terms, _task(catalog, task) if task else None)
        settings = Settings(
            job="render",
            profile=profile,
            suites=folders,
            action_repeat=common_repeat(sources, action_repeat),
            camera=camera[0],
            further_cameras=tuple(camera[1:]),
            render_size=size,
            crop=cut,
        )
        for source in sources:
            say(source.words(), stderr=True)
            _tell(source.file, source.examined.left_out)
        done = asyncio.run(convert(sources, settings, out, processes, keep_failures=keep_failures))
        for file, found in done.left_out.items():
            _tell(file, found)
        left = sum(len(source.examined.left_out) for source in sources)
        left += sum(map(len, done.left_out.values()))
        if left:
            of = sum(len(source.examined.header.demos) for source in sources)
            say(f"left out {left} of {of} demonstrations", stderr=True)
        say(str(out))


def _tell(file: Path, left_out: Mapping[str, str]) -> None:
    """Names what is left out of a file."""
    for reason in left_out.values():
        say(f"left out: {file.name}: {reason}", stderr=True)


def _task(catalog: TaskCatalog, text: str) -> SuiteTask:
    from vlarl_env.errors import UnknownTaskError

    suite, _, number = text.partition("/")
    if not number.isdecimal():
        raise ConfigError(f"--task is SUITE/NUMBER, e.g. libero_spatial/0, not {text!r}")
    try:
        return catalog.find(suite, int(number))
    except UnknownTaskError as error:
        raise ConfigError(f"--task {text}: {error}") from error


def _scale(text: str) -> tuple[float, float]:
    """Factors of translation and rotation."""
    if not text:
        return 1.0, 1.0
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if len(factors) not in (1, 2) or not all(0 < factor < math.inf for factor in factors):
        raise ConfigError(
            f"--action-scale is one positive number or two with a comma, not {text!r}"
        )
    return factors[0], factors[-1]


def _catalog(bddl: list[str] | None) -> tuple[TaskCatalog, dict[str, Path]]:
    from vlarl_env.simulators.registry import TaskCatalog

    folders = own_suites(bddl)
    return TaskCatalog(folders), folders


def _chosen(catalog: TaskCatalog, suite: str, numbers: str) -> list[SuiteTask]:
    from vlarl_env.errors import UnknownTaskError

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
