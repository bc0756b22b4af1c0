"""What is known of suites without a simulator: their names, so that a misspelt one is refused
before anything else, and which files of a folder are scenes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from vlarl.config import ConfigError, EnvConfig
from vlarl.config.libero import LIBERO_SUITES

SHIPPED_NAMES = ("reach", "approach")
"""Suites of our own that come with the package."""

_MAX_NAME = 100
"""Characters of an unknown suite's name that are looked at."""


def check_suite(env: EnvConfig, suite: str) -> None:
    """Makes sure that a suite has a known name; whether its files are right, only a
    simulator's environment can tell.

    Raises:
        ConfigError: it hasn't; the message names the nearest and all others.
    """
    known = {*LIBERO_SUITES, *SHIPPED_NAMES, *env.bddl_directories}
    if suite not in known:
        raise ConfigError(unknown_suite(suite, known))


def unknown_suite(suite: str, known: Iterable[str]) -> str:
    """Of a suite that nobody knows, what may be meant."""
    # A client may send megabytes, which difflib would chew for minutes.
    suite, names = suite[:_MAX_NAME], sorted(known)
    near = difflib.get_close_matches(suite, names, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    return f"unknown suite {suite!r}; {hint} are {', '.join(names)}"


def bddl_files(folder: Path) -> list[Path]:
    """The scene files of a folder, in the order of their names.

    Raises:
        OSError: there is no such folder.
    """
    # macOS leaves a file ._NAME of its own beside each that it copies. A link to nowhere stays:
    # left out, it would change the numbers of all tasks after it.
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() == ".bddl" and not file.name.startswith(".") and not file.is_dir()
    )
