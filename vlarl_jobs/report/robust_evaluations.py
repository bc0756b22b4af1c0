"""What `vlarl eval --perturb` left behind: a policy in perturbed scenes, and the one that training
began from.

OUT/robustness.json     whose evaluations these are, and which there are
    POLICY-PERTURBATION/  an evaluation each
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vlarl.intervals import difference_interval
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.records import Evaluation, Score, parse

INDEX = "robustness.json"
START, TRAINED = "start", "trained"
"""The policies: that from which training began, and what it made of it."""
UNPERTURBED = "none"


@dataclass(frozen=True)
class Condition:
    """A policy in scenes of one kind."""

    policy: str
    """START or TRAINED."""
    perturbation: str
    """UNPERTURBED, or one of `vlarl.config.libero.PERTURBATIONS`."""

    @property
    def folder(self) -> str:
        """Where its evaluation lies, seen from the index."""
        return f"{self.policy}-{self.perturbation}"


@dataclass(frozen=True)
class RobustnessIndex:
    """Content of robustness.json."""

    run: str
    """Id of the run whose policy was trained; empty where only a checkpoint was evaluated."""
    suite: str
    """Unperturbed."""
    conditions: list[Condition]
    """In the order in which they are evaluated."""


@dataclass(frozen=True)
class Difference:
    """A success rate less another one's."""

    score: Score
    base: Score

    @property
    def value(self) -> float:
        """From -1 to 1."""
        return self.score.rate - self.base.rate

    @property
    def interval(self) -> tuple[float, float]:
        """Of the value, 95 %."""
        score, base = self.score, self.base
        return difference_interval(score.successes, score.episodes, base.successes, base.episodes)

    @property
    def text(self) -> str:
        """In points, with its interval."""
        low, high = self.interval
        return f"{100 * self.value:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"


@dataclass(frozen=True)
class Loss:
    """A task that the trained policy does less often than the start did."""

    perturbation: str
    task: int
    difference: Difference


@dataclass(frozen=True)
class Robustness:
    """What is known so far of an index's conditions."""

    path: Path
    index: RobustnessIndex
    evaluations: dict[Condition, Evaluation]
    """Those that have begun."""

    @property
    def policies(self) -> list[str]:
        """Those that were evaluated, the start first."""
        return list(dict.fromkeys(one.policy for one in self.index.conditions))

    @property
    def perturbations(self) -> list[str]:
        """Of the scenes, in order."""
        return list(dict.fromkeys(one.perturbation for one in self.index.conditions))

    def total(self, policy: str, perturbation: str) -> Score | None:
        """All tasks together; None: not evaluated yet."""
        evaluation = self.evaluations.get(Condition(policy, perturbation))
        return evaluation.total if evaluation else None

    def difference(self, perturbation: str) -> Difference | None:
        """The trained policy's rate less the start's; None: one of them isn't known yet."""
        trained, start = self.total(TRAINED, perturbation), self.total(START, perturbation)
        return Difference(trained, start) if trained and start else None

    def losses(self) -> list[Loss]:
        """By task, the greatest first within each perturbation."""
        found = []
        for perturbation in self.perturbations:
            start, trained = (
                self.evaluations.get(Condition(policy, perturbation)) for policy in (START, TRAINED)
            )
            if start is None or trained is None:
                continue
            common = sorted(start.tasks.keys() & trained.tasks.keys())
            pairs = [(task, Difference(trained.tasks[task], start.tasks[task])) for task in common]
            worse = [Loss(perturbation, task, one) for task, one in pairs if one.value < 0]
            found += sorted(worse, key=lambda loss: loss.difference.value)
        return found


def read_robustness(folder: Path) -> Robustness:
    """Reads a folder that holds an index, and the evaluations that have begun.

    Raises:
        ReportError: the index or an evaluation can't be read.
    """
    index = parse(RobustnessIndex, _content(folder / INDEX), str(folder / INDEX))
    evaluations = {}
    for condition in index.conditions:
        file = folder / condition.folder / "evaluation.json"
        if file.exists():
            evaluations[condition] = parse(Evaluation, _content(file), str(file))
    return Robustness(folder, index, evaluations)


def _content(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file}: can't be read ({error})") from error
