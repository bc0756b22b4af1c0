"""`vlarl eval --perturb`: evaluations in a suite's own scenes and in perturbed ones, one after the
other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from vlarl.config import ConfigError
from vlarl.files import replace_text
from vlarl.terminal import say, show, styled
from vlarl_jobs.report import sections
from vlarl_jobs.report.robust_evaluations import (
    INDEX,
    TRAINED,
    Condition,
    RobustnessIndex,
    read_robustness,
)
from vlarl_jobs.report.robustness import rates


def evaluate_conditions(
    index: RobustnessIndex, out: Path, evaluate: Callable[[Condition, Path], int]
) -> int:
    """Runs the evaluations of an index, or what is missing of them, and prints their table.

    Args:
        index: which evaluations.
        out: their folder; those that an earlier call asked for stay in its table.
        evaluate: evaluates one condition into its own folder and returns the exit code.

    Returns:
        The exit code: 1 when episodes were given up; that of the first evaluation that was cut
        short, after which no other is begun.

    Raises:
        ConfigError: the folder is another run's or suite's.
    """
    asked, index = index.conditions, _with_earlier(out, index)
    worst = 0
    for number, condition in enumerate(asked, start=1):
        title = f"evaluation {number}/{len(asked)}: {_in_words(condition)}"
        say((title, "bold"))
        code = evaluate(condition, out / condition.folder)
        # Not before: what is refused leaves nothing behind.
        replace_text(out / INDEX, json.dumps(asdict(index), indent=1) + "\n")
        if code and not _has_ended(out / condition.folder):
            return code
        worst = max(worst, code)
    known = read_robustness(out)
    show(_printed(rates(known)))
    for loss in known.losses():
        say(
            f"the trained policy loses: {loss.perturbation}, task {loss.task} "
            f"({loss.difference.base.instruction}): {loss.difference.text}"
        )
    say(f"results: {out}  ({INDEX}, a folder for each evaluation)")
    return worst


def _with_earlier(out: Path, index: RobustnessIndex) -> RobustnessIndex:
    """The index, with the conditions that the folder's has beside them."""
    if not (out / INDEX).exists():
        return index
    before = read_robustness(out).index
    if (before.run, before.suite) != (index.run, index.suite):
        raise ConfigError(
            f"{out} holds evaluations of {before.run or 'a checkpoint'} on {before.suite}, not of "
            f"{index.run or 'a checkpoint'} on {index.suite}: choose another --out"
        )
    both = dict.fromkeys([*before.conditions, *index.conditions])
    return replace(index, conditions=list(both))


def _in_words(condition: Condition) -> str:
    policy = "the trained policy" if condition.policy == TRAINED else "the start"
    return f"{policy}, perturbation: {condition.perturbation}"


def _has_ended(folder: Path) -> bool:
    """Whether no episode of an evaluation is still to come."""
    file = folder / "evaluation.json"
    return file.exists() and bool(json.loads(file.read_text(encoding="utf-8"))["ended"])


def _printed(table: sections.Table) -> Table:
    """A table of the report's for the terminal."""
    printed = Table(*table.head)
    for row in table.rows:
        printed.add_row(*(styled(one if isinstance(one, str) else one.text) for one in row))
    return printed
