"""`vlarl eval --perturb`: which scenes, and which policies in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlarl.config import ConfigError, RunConfig
from vlarl.config.libero import PERTURBATIONS, PERTURBED_SUITES
from vlarl.ownership import owned

Perturb = Annotated[
    list[str] | None,
    typer.Option(
        "--perturb",
        metavar="KIND",
        help="Evaluate in the suite's own scenes and in LIBERO-PRO's perturbed ones: position, "
        "object, language, task or all; may be repeated. With --run, both the run's policy and "
        "the one that its training began from.",
    ),
]


def perturbed_suite(settings: RunConfig, kind: str) -> str:
    """Name of the suite's variant."""
    return f"{settings.tasks.suite}_{PERTURBATIONS[kind]}"


def perturbations(kinds: list[str] | None, suite: str) -> list[str]:
    """What --perturb names, each once; nothing where it isn't there.

    Raises:
        ConfigError: no such perturbation, or the suite has no variants.
    """
    if not kinds:
        return []
    known = ", ".join(PERTURBATIONS)
    for kind in kinds:
        if kind == "environment":
            raise ConfigError(
                f"--perturb environment: the simulator's package has no scenes for it; it has "
                f"{known}"
            )
        if kind not in (*PERTURBATIONS, "all"):
            raise ConfigError(f"--perturb {kind}: there are {known}, and all for each of them")
    if suite not in PERTURBED_SUITES:
        raise ConfigError(
            f"--perturb: suite {suite!r} has no perturbed variants; those that do: "
            f"{', '.join(PERTURBED_SUITES)}"
        )
    return list(PERTURBATIONS) if "all" in kinds else list(dict.fromkeys(kinds))


def evaluate_perturbed(
    settings: RunConfig,
    run: Path | None,
    kinds: Sequence[str],
    folder: Path,
    evaluate_one: Callable[[str, Path | None, Path], int],
) -> int:
    """Each policy in the suite's own scenes and in the perturbed ones."""
    from vlarl_jobs.evaluation.robustness import evaluate_conditions
    from vlarl_jobs.report.robust_evaluations import (
        START,
        TRAINED,
        UNPERTURBED,
        Condition,
        RobustnessIndex,
    )

    policies = [START, TRAINED] if run else [START]
    conditions = [Condition(policy, kind) for policy in policies for kind in (UNPERTURBED, *kinds)]
    index = RobustnessIndex(settings.name if run else "", settings.tasks.suite, conditions)

    def evaluate_condition(condition: Condition, into: Path) -> int:
        trained = run if condition.policy == TRAINED else None
        kind = condition.perturbation
        suite = settings.tasks.suite if kind == UNPERTURBED else perturbed_suite(settings, kind)
        with owned(into, "vlarl eval"):
            return evaluate_one(suite, trained, into)

    return evaluate_conditions(index, folder, evaluate_condition)
