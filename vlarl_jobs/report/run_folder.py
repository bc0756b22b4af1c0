"""A run's folder, read and checked. The run may still be going on."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from vlarl import __version__
from vlarl.config import ConfigError, RunConfig, SftConfig, load_saved, load_section
from vlarl.json_lines import placed_lines, read_lines
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.records import (
    Actions,
    Evaluation,
    EvaluationFolder,
    Film,
    Floats,
    Iteration,
    Return,
    Start,
    parse,
)
from vlarl_jobs.report.robust_evaluations import INDEX, Robustness, read_robustness

_PLACE = ("iteration", "policy_version", "env_steps")
_NEEDED = ("success_rate", "episodes")
_FILM = re.compile(r"task-(\d+)_init-(\d+)_(success|failure)\.mp4")


@dataclass(frozen=True)
class Run:
    """Everything that a run has written down."""

    path: Path
    config: RunConfig
    iterations: list[Iteration]
    """At least one."""
    evaluations: list[Evaluation]
    """In the order of training."""
    starts: list[Start]
    """Of the trainer; none where they weren't recorded."""
    actions: list[Actions]
    """Of the first and the latest iteration; empty where they weren't recorded."""
    folders: list[EvaluationFolder]
    """Evaluations of this run's policies that `vlarl eval` did."""
    robustness: list[Robustness]
    """Those in perturbed scenes."""

    @property
    def name(self) -> str:
        """The run's id."""
        return self.config.name

    @property
    def done(self) -> bool:
        """Whether all iterations that were wanted are complete."""
        return len(self.iterations) >= self.wanted

    @property
    def wanted(self) -> int:
        """Iterations of the whole run: those after which success was enough
        (`trainer.stop_at_success`), or all.
        """
        enough, complete = self.config.trainer.stop_at_success, len(self.iterations)
        latest = self.evaluation_after(complete)
        if enough is not None and latest is not None and latest.total.rate >= enough:
            return complete
        return self.config.trainer.iterations

    def evaluation_after(self, iterations: int) -> Evaluation | None:
        """That of the policy after so many iterations, where there was one."""
        return next((one for one in self.evaluations if one.iteration == iterations), None)

    @property
    def returns(self) -> list[Return]:
        """Where it went back to an earlier policy."""
        return [
            Return(one.iteration, int(one.metrics["rolled_back_to"]), one.metrics["rate_scale"])
            for one in self.iterations
            if "rolled_back_to" in one.metrics
        ]

    def metric(self, name: str) -> Floats:
        """[iterations], NaN where an iteration lacks it."""
        return np.array([one.metrics.get(name, np.nan) for one in self.iterations])

    def has(self, name: str) -> bool:
        """Whether any iteration has the metric."""
        return any(name in one.metrics for one in self.iterations)

    @cached_property
    def env_steps(self) -> Floats:
        """[iterations], control steps at the end of each."""
        return np.array([one.env_steps for one in self.iterations], dtype=np.float64)

    @cached_property
    def hours(self) -> Floats:
        """[iterations], hours of work until the end of each: iterations and evaluations. Time in
        which nothing ran, and work that a crash had done again, don't count.
        """
        ends = np.cumsum(np.nan_to_num(self.metric("seconds_iteration")))
        numbers = np.array([one.iteration for one in self.iterations])
        for evaluation in self.evaluations:
            ends[numbers >= evaluation.iteration] += evaluation.seconds
        return ends / 3600

    @property
    def worked_hours(self) -> float:
        """Hours of all work."""
        ends = [self.evaluation_hours(one) for one in self.evaluations]
        return max([float(self.hours[-1]), *ends])

    def evaluation_hours(self, evaluation: Evaluation) -> float:
        """Hours of work until an evaluation's end."""
        trained = sum(
            one.metrics.get("seconds_iteration", 0.0)
            for one in self.iterations
            if one.iteration < evaluation.iteration
        )
        evaluated = sum(
            one.seconds for one in self.evaluations if one.iteration <= evaluation.iteration
        )
        return (trained + evaluated) / 3600


def read_run(path: Path) -> Run:
    """Reads a run's folder.

    Raises:
        ReportError, DamagedFileError: it isn't one, has no iteration yet, is of another version,
            or is damaged.
    """
    config = _read_config(path)
    lines = placed_lines(path / "metrics.jsonl")
    iterations = [_iteration(row, place) for place, row in lines]
    if not iterations:
        raise ReportError(
            f"{path}: no iteration is complete yet; wait for the first (`vlarl up` prints a line "
            f"for each), or look at {path / 'logs'} for why there is none"
        )
    evaluations = [
        parse(Evaluation, row, place) for place, row in placed_lines(path / "evaluations.jsonl")
    ]
    return Run(
        path=path,
        config=config,
        iterations=iterations,
        evaluations=sorted(evaluations, key=lambda one: one.iteration),
        starts=[parse(Start, row, place) for place, row in placed_lines(path / "starts.jsonl")],
        actions=[_read_actions(file) for file in sorted((path / "actions").glob("*.npz"))],
        folders=list(_evaluation_folders(path, config.name)),
        robustness=[one for one in _robustness(path) if one.index.run == config.name],
    )


def _read_config(path: Path) -> RunConfig:
    saved = path / "config.toml"
    if not path.is_dir():
        raise ReportError(f"{path}: there is no such folder; name the folder of a run, runs/NAME")
    if (path / "evaluation.json").exists():
        raise ReportError(
            f"{path}: an evaluation, not a run; name the run whose policy it evaluated, and its "
            "evaluations are found"
        )
    if not saved.exists():
        raise ReportError(f"{path}: not a run's folder (config.toml is missing)")
    try:
        return load_saved(RunConfig, saved)
    except ConfigError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise ReportError(str(error)) from error  # can't be read, or isn't TOML
        try:
            load_section(SftConfig, saved)
        except ConfigError:
            starts = [row.get("vlarl") for row in read_lines(path / "starts.jsonl")]
            made = f" (vlarl {starts[-1]} made it)" if starts else ""
            raise ReportError(
                f"{path}: a run of another version than this vlarl {__version__}{made}; report on "
                f"it with that version. {error}"
            ) from error
        raise ReportError(f"{path}: a run of `vlarl sft`; name one of `vlarl up`") from error


def _iteration(row: dict[str, object], place: str) -> Iteration:
    fields = {name: row[name] for name in _PLACE if name in row}
    metrics = {name: value for name, value in row.items() if name not in _PLACE}
    for name in _NEEDED:
        if name not in metrics:
            raise ReportError(f"{place}: {name} is missing; another version of vlarl wrote it?")
    return parse(Iteration, fields | {"metrics": metrics}, place)


def _read_actions(path: Path) -> Actions:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = np.asarray(arrays["values"], dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"actions of shape {values.shape}")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path}: can't be read ({error}); remove it to go without") from error
    return Actions(iteration=int(path.stem.removeprefix("iteration-")), values=values)


def _evaluation_folders(run: Path, run_id: str) -> Iterator[EvaluationFolder]:
    for file in _inside_and_beside(run, "evaluation.json"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            owner = content["protocol"]["run"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # whatever it is, it doesn't say that it is this run's
        if owner != run_id:
            continue
        yield EvaluationFolder(
            path=file.parent,
            complete=bool(content.get("complete")),
            profile=str(content["protocol"].get("profile", "–")),
            evaluation=parse(Evaluation, content, str(file)),
            films=list(_films(file.parent / "videos", run_id)),
        )


def _robustness(run: Path) -> Iterator[Robustness]:
    for index in _inside_and_beside(run, INDEX):
        yield read_robustness(index.parent)


def _inside_and_beside(run: Path, name: str) -> list[Path]:
    """Files of this name in the folders inside the run's, and in those beside it."""
    folder = run.resolve()
    return sorted({*folder.glob(f"*/{name}"), *folder.parent.glob(f"*/{name}")})


def _films(folder: Path, run_id: str) -> Iterator[Film]:
    for path in sorted(folder.glob("task-*.mp4")):
        if match := _FILM.fullmatch(path.name):
            task, init_state, end = match.groups()
            yield Film(path, run_id, int(task), int(init_state), end == "success")
