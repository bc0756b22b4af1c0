"""What a run's files hold, typed. docs/metrics.md says what the metrics mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from vlarl.intervals import wilson_interval
from vlarl_jobs.report.errors import ReportError

T = TypeVar("T")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Iteration:
    """A line of metrics.jsonl."""

    iteration: int
    """From 0."""
    policy_version: int
    """Version that acted."""
    env_steps: int
    """Control steps since the run began."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Score:
    """Greedy episodes."""

    instruction: str
    successes: int
    episodes: int
    actions: int
    """Policy actions of all episodes together."""
    missing: int = 0
    """Of the episodes, those that were given up: they failed, and have no actions."""

    @property
    def ended(self) -> int:
        """Episodes that weren't given up."""
        return self.episodes - self.missing

    @property
    def rate(self) -> float:
        """Share that succeeded; NaN where there are no episodes."""
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rate, 95 %."""
        return wilson_interval(self.successes, self.episodes)


def pooled(scores: Iterable[Score]) -> Score:
    """All of these episodes together, under the first one's instruction."""
    known = list(scores)
    return Score(
        instruction=known[0].instruction if known else "",
        successes=sum(score.successes for score in known),
        episodes=sum(score.episodes for score in known),
        actions=sum(score.actions for score in known),
        missing=sum(score.missing for score in known),
    )


@dataclass(frozen=True)
class Evaluation:
    """A line of evaluations.jsonl, or an evaluation.json."""

    iteration: int
    """Iterations that the policy was trained for."""
    policy_version: int
    env_steps: int
    """Control steps that it was trained for."""
    tasks: dict[int, Score]
    missing: int
    """Episodes that were given up; they count as failures."""
    seconds: float = 0.0
    """Wall-clock seconds that it took; 0 where that wasn't recorded."""

    @cached_property
    def total(self) -> Score:
        """All tasks together."""
        total = pooled(self.tasks.values())
        # Until 0.1.0 those that were given up were left out of the tasks' episodes.
        left_out = self.missing - total.missing
        return replace(total, episodes=total.episodes + left_out, missing=self.missing)


@dataclass(frozen=True)
class Return:
    """A return to an earlier policy."""

    after: int
    """Iterations completed when it came."""
    to: int
    """Iterations after which the policy was taken up again."""
    rate_scale: float
    """What the policy's learning rate was multiplied by from there on."""


@dataclass(frozen=True)
class Start:
    """A line of starts.jsonl."""

    started_timestamp_seconds: float
    iteration: int
    """Iterations completed before."""
    vlarl: str
    """Version of this package."""
    torch: str
    processor: str
    cores: int
    memory_gib: float
    accelerator: str
    """Its name; empty: none."""
    ranks: int

    @property
    def machine(self) -> str:
        """The machine in a few words."""
        ranks = f"{self.ranks} × " if self.ranks > 1 else ""
        accelerator = f"{ranks}{self.accelerator}, " if self.accelerator else ""
        return f"{accelerator}{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB"


@dataclass(frozen=True)
class Actions:
    """What a policy did in one iteration of training, sampled."""

    iteration: int
    """From 0."""
    values: Floats
    """[N, action_dim]."""


@dataclass(frozen=True)
class Film:
    """A film that an evaluation made."""

    path: Path
    run: str
    """Id of the run whose policy acted."""
    task: int
    init_state: int
    success: bool


@dataclass(frozen=True)
class EvaluationFolder:
    """What `vlarl eval --run` left behind."""

    path: Path
    complete: bool
    profile: str
    """Of the simulator."""
    evaluation: Evaluation
    films: list[Film]


def parse(kind: type[T], content: object, place: str) -> T:
    """Content of a file as a record.

    Raises:
        ReportError: a field is missing or of another type.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ReportError(
            f"{place}: {field}: {problem['msg']}; was it written by another version of vlarl?"
        ) from error
