"""The sections of a report, from what the runs hold."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vlarl.config import RunConfig, dump_toml
from vlarl_jobs.report.episode_groups import episode_groups
from vlarl_jobs.report.figures.coverage import coverage_panels
from vlarl_jobs.report.figures.curriculum import curriculum_panels
from vlarl_jobs.report.figures.dynamics import dynamics_panels
from vlarl_jobs.report.figures.phases import phase_panels
from vlarl_jobs.report.figures.reward import reward_panels
from vlarl_jobs.report.figures.success import success_panels
from vlarl_jobs.report.films import choose, clip_of
from vlarl_jobs.report.groups import Group, differences, flattened
from vlarl_jobs.report.headline import headline
from vlarl_jobs.report.health import health
from vlarl_jobs.report.milestones import after, milestones
from vlarl_jobs.report.records import Score
from vlarl_jobs.report.robustness import robustness
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.sections import Cell, Rate, Section, Table


def sections_of(groups: Sequence[Group]) -> list[Section]:
    """All sections, in their order; what a run has nothing for is left out or says so."""
    found = [
        headline(groups),
        _success(groups),
        _dynamics(groups),
        episode_groups(groups),
        _reward(groups),
        _tasks(groups),
        robustness(groups),
        _films(groups),
        _curriculum(groups),
        _coverage(groups),
        _phases(groups),
        health(groups),
        _configuration(groups),
    ]
    return [section for section in found if section is not None]


def _seeds(groups: Sequence[Group]) -> bool:
    return any(len(group.runs) > 1 for group in groups)


def _success(groups: Sequence[Group]) -> Section:
    spread = (
        "Bold lines and dots are means over seeds, their bands and bars go from the lowest seed to "
        "the highest, faint lines are single runs."
        if _seeds(groups)
        else "Bands and bars are Wilson 95 % intervals: what so few episodes leave open."
    )
    return Section(
        "success",
        "Success",
        "Lines are the episodes of training, sampled, and smoothed over the latest "
        "iterations. Dots are greedy evaluations from official initial states, which training "
        f"never sees. {spread} Time counts iterations and evaluations, not stops between them.",
        panels=success_panels(groups),
        columns=2,
    )


def _dynamics(groups: Sequence[Group]) -> Section:
    runs = [run for group in groups for run in group.runs]
    critic = (
        "The critic should explain more and more of the returns. The policy's own curves begin "
        "after the critic's warm-up. "
        if any(run.has("value_loss") for run in runs)
        else ""
    )
    return Section(
        "dynamics",
        "How learning went",
        "Return should rise, episodes get shorter, entropy fall slowly (ln 256 = 5.55 knows "
        f"nothing) and KL stay well below its bound. {critic}Faint lines are single "
        f"{'runs, bands their range' if _seeds(groups) else 'iterations, bold ones are smoothed'}.",
        panels=dynamics_panels(groups),
    )


def _reward(groups: Sequence[Group]) -> Section | None:
    panels = reward_panels(groups)
    if not panels:
        return None
    return Section(
        "reward",
        "The process reward",
        "An episode's sum of dense rewards, before their coefficient. Successes should earn more "
        "than failures, and the correlation stay well above 0; where it falls while the return "
        "rises, the policy pleases the reward model instead of solving tasks. Sums that grow with "
        "length pay for loitering.",
        panels=panels,
        columns=2,
    )


def _tasks(groups: Sequence[Group]) -> Section | None:
    tables = [table for group in groups if (table := _task_table(group, alone=len(groups) == 1))]
    folders = _folder_table([run for group in groups for run in group.runs])
    if not tables and folders is None:
        return None
    pooling = " Episodes of all seeds are counted together." if _seeds(groups) else ""
    return Section(
        "tasks",
        "Success by task",
        "Greedy episodes from official initial states. A dot is the share that succeeded, the "
        "line around it its Wilson 95 % interval: where two lines overlap much, nothing is shown."
        f"{pooling}",
        tables=[*tables, *([folders] if folders else [])],
    )


def _task_table(group: Group, *, alone: bool) -> Table | None:
    ends = milestones(group)
    if not ends:
        return None

    def row(name: str, instruction: str, scores: Sequence[Score | None]) -> list[Cell]:
        rates: list[Cell] = [Rate.of(score) if score else "–" for score in scores]
        known = [score for score in scores if score and score.ended]
        actions = [score.actions / score.ended for score in known]
        return [name, instruction, *rates, " → ".join(f"{mean:.1f}" for mean in actions)]

    tasks = sorted({task for one in ends for task in one.tasks})
    rows = [
        row(
            str(task),
            next(one.tasks[task].instruction for one in ends if task in one.tasks),
            [one.tasks.get(task) for one in ends],
        )
        for task in tasks
    ]
    if len(tasks) > 1:
        rows.append(row("", "all tasks", [one.total for one in ends]))
    head = ["task", "instruction", *(one.when for one in ends), "actions an episode"]
    return Table(head, rows, total=len(tasks) > 1, title="" if alone else group.label)


def _folder_table(runs: Sequence[Run]) -> Table | None:
    rows: list[list[Cell]] = []
    for run in runs:
        for folder in run.folders:
            evaluation = folder.evaluation
            rows.append(
                [
                    folder.path.name,
                    f"{run.name}, {after(evaluation.iteration, evaluation.iteration)}",
                    folder.profile,
                    Rate.of(evaluation.total),
                    "yes" if folder.complete else "no",
                ]
            )
    if not rows:
        return None
    head = ["folder", "policy", "simulator", "success", "complete"]
    return Table(head, rows, title="Evaluations by `vlarl eval`")


def _films(groups: Sequence[Group]) -> Section:
    runs = [run for group in groups for run in group.runs]
    films = [film for run in runs for folder in run.folders for film in folder.films]
    several = len({film.run for film in films}) > 1
    clips = [clip for film in choose(films) if (clip := clip_of(film, name_run=several))]
    reading = "Greedy episodes as the policy saw them, with its action, reward and value."
    if not clips:
        reading = (
            f"None were made. `vlarl eval --run {shlex.quote(str(runs[0].path))} --videos 2` makes "
            "some, which the next report shows."
        )
    return Section("films", "Films", reading, clips=clips)


def _curriculum(groups: Sequence[Group]) -> Section | None:
    panels = curriculum_panels(groups)
    if not panels:
        return None
    return Section(
        "curriculum",
        "Curriculum",
        "A row is a task, time goes to the right, darker is more (brighter, in the dark scheme). A "
        "task that succeeds often is drawn less by the paper's formula; 50 % stands for a task "
        "that hasn't been seen.",
        panels=panels,
        columns=2,
    )


def _coverage(groups: Sequence[Group]) -> Section:
    panels = coverage_panels(groups)
    reading = (
        "Actions sampled in the first iteration (grey) and in the latest (orange), as the robot "
        "got them, and all dimensions projected onto the plane in which they vary most. Where "
        "orange goes and grey doesn't, training found something new; narrow orange peaks are a "
        "policy that has made up its mind."
    )
    if not panels:
        reading = "Left out: the actions of two iterations are needed, and the run has none."
    return Section("actions", "Actions, before and after", reading, panels=panels, columns=4)


def _phases(groups: Sequence[Group]) -> Section:
    return Section(
        "time",
        "Where the time went",
        "Wall-clock seconds of each phase, in their order from the bottom or the left. A rollout "
        "is shared out between simulators and policy as its episodes' own time is.",
        panels=phase_panels(groups),
        columns=2,
    )


def _configuration(groups: Sequence[Group]) -> Section:
    if len(groups) > 1:
        keys = ["seed", *differences([group.first for group in groups])]
        rows: list[list[Cell]] = [[key, *(_value(group, key) for group in groups)] for key in keys]
        table = Table(["key", *(group.label for group in groups)], rows)
        reading = "What differs between these runs; everything else is the same in all of them."
    else:
        plain, own = flattened(RunConfig()), flattened(groups[0].first.config)
        rows = [
            [key, _value(groups[0], key), str(plain.get(key, "–"))]
            for key, value in own.items()
            if value != plain.get(key)
        ]
        table = Table(["key", "value", "default"], rows)
        reading = "What differs from the defaults, which docs/configuration.md explains."
    files = {
        f"All of {group.first.name}'s config.toml": dump_toml(group.first.config)
        for group in groups
    }
    return Section("configuration", "Configuration", reading, tables=[table], files=files)


def _value(group: Group, key: str) -> str:
    if key == "seed":
        return group.seeds
    return str(flattened(group.first.config).get(key, "–"))
