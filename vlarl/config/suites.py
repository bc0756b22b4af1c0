"""What is known of suites without a simulator: their names, so that a misspelt one is refused
before anything else, and which files of a folder are scenes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from vlarl.config import ConfigError, EnvConfig
from vlarl.config.libero import (
    FURTHER_CAMERAS,
    LIBERO_SUITES,
    SCENE_CAMERAS,
    SUITES_OF_ROOMS,
    base_suite,
)

SHIPPED_NAMES = ("reach", "approach")
"""Suites of our own that come with the package."""

_COMMENT = re.compile(r";[^\n]*")
_PROBLEM = re.compile(r"\(\s*problem\s+([^\s()]+)", re.IGNORECASE)

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


def scene_cameras(env: EnvConfig, suite: str, indices: Collection[int] = ()) -> tuple[str, ...]:
    """Cameras that all scenes of a suite have.

    Args:
        env: where suites of the user's own lie. One whose folder isn't here may have what any
            scene has.
        suite: its name.
        indices: the tasks that are meant; empty: all.
    """
    if suite in env.bddl_directories:
        kinds = _problems(env.bddl_directories[suite], indices)
        further = [FURTHER_CAMERAS[kind] for kind in kinds if kind in FURTHER_CAMERAS]
        if not further:
            return (
                *SCENE_CAMERAS,
                *sorted({one for some in FURTHER_CAMERAS.values() for one in some}),
            )
        return (*SCENE_CAMERAS, *sorted(set(further[0]).intersection(*further[1:])))
    rooms = base_suite(suite) in SUITES_OF_ROOMS
    return (*SCENE_CAMERAS, "paperview") if rooms else SCENE_CAMERAS


def _problems(folder: Path, indices: Collection[int]) -> set[str]:
    """What the scene files of a folder name as their problem, as far as they can be read: whether
    they are right, the simulator's environment says.
    """
    try:
        files = bddl_files(folder)
        meant = [file for number, file in enumerate(files) if not indices or number in indices]
        texts = [_COMMENT.sub("", file.read_text("utf-8", errors="replace")) for file in meant]
    except OSError:
        return set()
    return {found[1].lower() for text in texts if (found := _PROBLEM.search(text))}


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
