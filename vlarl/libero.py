"""LIBERO's suites, and LIBERO-PRO's perturbed variants of them, which test robustness."""

from __future__ import annotations

PERTURBED_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
"""The suites that have variants."""

PERTURBATIONS = ("swap", "object", "lan", "task")
"""What a variant changes: where objects stand, how they look, the words, or the task itself."""


def variants(suite: str) -> tuple[str, ...]:
    """Names of a suite's variants, e.g. libero_goal_swap; none for other suites."""
    if suite not in PERTURBED_SUITES:
        return ()
    return tuple(f"{suite}_{perturbation}" for perturbation in PERTURBATIONS)


def base_suite(suite: str) -> str:
    """The suite that this one is a variant of; itself where it is none."""
    return next((base for base in PERTURBED_SUITES if suite in variants(base)), suite)


LIBERO_STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps of an episode in the protocol that published numbers follow; a variant of a suite
has the suite's.
"""

LIBERO_SUITES = {
    name: limit for suite, limit in LIBERO_STEP_LIMITS.items() for name in (suite, *variants(suite))
}
"""Control steps of an episode by suite, variants included."""
