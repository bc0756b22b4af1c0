"""Names of suites, known without a simulator: a misspelt one is refused before anything else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vlarl.config import ConfigError, RunConfig
from vlarl.libero import LIBERO_SUITES

SHIPPED_NAMES = ("reach", "approach")
"""Suites of our own that come with the package."""

_MAX_NAME = 100
"""Characters of an unknown suite's name that are looked at."""


def check_suite(config: RunConfig) -> None:
    """Makes sure that a run's suite has a known name; whether its files are right, only a
    simulator's environment can tell.

    Raises:
        ConfigError: it hasn't; the message names the nearest and all others.
    """
    known = {*LIBERO_SUITES, *SHIPPED_NAMES, *config.env.bddl_directories}
    if config.tasks.suite not in known:
        raise ConfigError(unknown_suite(config.tasks.suite, known))


def unknown_suite(suite: str, known: Iterable[str]) -> str:
    """Of a suite that nobody knows, what may be meant."""
    # A client may send megabytes, which difflib would chew for minutes.
    suite, names = suite[:_MAX_NAME], sorted(known)
    near = difflib.get_close_matches(suite, names, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    return f"unknown suite {suite!r}; {hint} are {', '.join(names)}"
