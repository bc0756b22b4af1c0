"""Configurations as TOML files: read with overrides laid over them, and written back."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vlarl.config.base import Section, explain, merge, unknown_keys
from vlarl.errors import ConfigError
from vlarl.files import replace_text

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)
_MOVED = {"reward.gamma": "trainer.ppo.gamma"}
"""Keys that runs of older versions saved, and where they are now."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def load_section(root: type[S], path: Path | None, overrides: Iterable[str] = ()) -> S:
    """Reads a configuration.

    Args:
        root: what the file is as a whole.
        path: TOML file; none: the defaults.
        overrides: `section.key=value` pairs laid over the file, values written as in TOML
            (a bare word is a string).

    Raises:
        ConfigError: unreadable file, unknown key (the nearest known one is named), bad value.
    """
    source = str(path) if path else "configuration"
    values = {} if path is None else read_toml(path)
    return as_section(root, with_overrides(values, overrides), source)


def with_overrides(values: dict[str, object], overrides: Iterable[str]) -> dict[str, object]:
    """A file's tables with `section.key=value` pairs laid over them.

    Raises:
        ConfigError: one isn't such a pair.
    """
    for override in overrides:
        values = merge(values, _parse_override(override))
    return values


def load_saved(root: type[S], path: Path, overrides: Iterable[str] = ()) -> S:
    """Reads what a run of any version has saved: keys that this version doesn't know are left out,
    those that have moved are read from where they were, and a warning tells of each, once.

    Only for looking at a run: one that goes on needs every key to mean what it meant.

    Args:
        root: what the file is as a whole.
        path: a run's config.toml.
        overrides: as in `load_section`, and as strict.

    Raises:
        ConfigError: unreadable file, another kind of configuration, bad value, wrong override.
    """
    values = read_toml(path)
    for old, new in _MOVED.items():
        if (found := _taken(values, old)) is not None:
            _tell(f"{path}: {old}, of an older version, is {new} now")
            if _at(values, new) is None:
                values = merge(values, _nested(new, found))
    for key in unknown_keys(root, values):
        _taken(values, key)
        _tell(f"{path}: {key}, of another version, is left out")
    return as_section(root, with_overrides(values, overrides), str(path))


@cache
def _tell(text: str) -> None:
    logger.warning("%s", text)


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file, with or without a byte-order mark.

    Raises:
        ConfigError: it can't be read, or isn't TOML; the message names it.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8, as TOML is ({error.reason}); save the file as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _at(values: Mapping[str, object], key: str) -> object:
    """What stands there; None: nothing."""
    found: object = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _taken(values: dict[str, object], key: str) -> object:
    """What stands there, removed; None: nothing."""
    table, _, name = key.rpartition(".")
    inside = _at(values, table) if table else values
    return inside.pop(name, None) if isinstance(inside, dict) else None


def as_section(root: type[S], values: Mapping[str, object], source: str) -> S:
    """The values as a section.

    Args:
        root: which.
        values: tables as TOML has them.
        source: where they come from, for the error.

    Raises:
        ConfigError: unknown key (the nearest known one is named), bad value, text that no file can
            hold.
    """
    for key, text in _undecoded(values):
        raise ConfigError(
            f"{source}: {key}: {text!a} isn't UTF-8, which a configuration is saved in; if "
            "that is a file's name, rename the file"
        )
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise explain(root, error, source) from error


def _undecoded(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Text with lone surrogates, with its key: of names on disk that aren't UTF-8, as Python has
    them.
    """
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield place, value
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            shown = str(key).encode("utf-8", "backslashreplace").decode()
            here = f"{place}.{shown}".removeprefix(".")
            yield from _undecoded(key, here)
            yield from _undecoded(inside, here)
    elif isinstance(value, list):
        for inside in value:
            yield from _undecoded(inside, place)


def _parse_override(text: str) -> dict[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{text!r}: an override is written section.key=value")
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return _nested(key.strip(), parsed)


def _nested(key: str, value: object) -> dict[str, object]:
    """Tables that hold the value at this key."""
    outer, *inner = key.split(".")
    return {outer: _nested(".".join(inner), value) if inner else value}


def save_config(config: Section, directory: Path) -> None:
    """Makes a new run's folder, with its config.toml: whole, or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(directory / "config.toml", dump_toml(config))


def runs_of(directory: Path) -> list[Path]:
    """Folders of the runs that `vlarl ablate` or a user keeps in a folder, by name."""
    found = (saved.parent for saved in directory.glob("*/config.toml"))
    return sorted(run for run in found if not (run / "evaluation.json").exists())


def runs_inside(directory: Path) -> str:
    """What to add to "no run here": the runs in the folder, as a further half-sentence; empty where
    there are none.
    """
    names = [run.name for run in runs_of(directory)]
    if not names:
        return ""
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"; the runs inside it are {shown}"


def dump_toml(config: Section) -> str:
    """The section as TOML that `load_section` reads back equal; unset keys are left out."""
    return "\n".join(_toml_lines(config.model_dump(mode="json", exclude_none=True), ())) + "\n"


def toml_value(value: object) -> str:
    """A string, number, truth value, or list of them as TOML writes it."""
    # JSON's are TOML's too, but for characters escaped in halves and for a raw DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def _toml_lines(table: dict[str, object], path: tuple[str, ...]) -> list[str]:
    lines = [
        f"{_toml_key(key)} = {toml_value(value)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    for key, value in table.items():
        if isinstance(value, dict) and value:
            here = (*path, _toml_key(key))
            lines += ["", f"[{'.'.join(here)}]", *_toml_lines(value, here)]
    return lines
