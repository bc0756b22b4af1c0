"""Configurations as TOML files: read with overrides laid over them, and written back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vlarl.config.base import ConfigError, Section, explain, merge

S = TypeVar("S", bound=Section)


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
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: can't be read ({error.strerror})") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        values = merge(values, _parse_override(override))
    return as_section(root, values, source)


def as_section(root: type[S], values: Mapping[str, object], source: str) -> S:
    """The values as a section.

    Args:
        root: which.
        values: tables as TOML has them.
        source: where they come from, for the error.

    Raises:
        ConfigError: unknown key (the nearest known one is named), bad value.
    """
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise explain(root, error, source) from error


def _parse_override(text: str) -> dict[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{text!r}: an override is written section.key=value")
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    assert isinstance(parsed, dict)  # noqa: S101 - at least one key was wrapped
    return parsed


def save_config(config: Section, directory: Path) -> None:
    """Makes a new run's folder, with its config.toml: whole, or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / ".config.partial"
    partial.write_text(dump_toml(config))
    partial.replace(directory / "config.toml")


def runs_inside(directory: Path) -> str:
    """What to add to "not a run's folder": the runs that `vlarl ablate` or a user keeps in it, as a
    further half-sentence; empty where there are none.
    """
    names = sorted(found.parent.name for found in directory.glob("*/config.toml"))
    if not names:
        return ""
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"; the runs inside it are {shown}"


def dump_toml(config: Section) -> str:
    """The section as TOML that `load_section` reads back equal; unset keys are left out."""
    return "\n".join(_toml_lines(config.model_dump(mode="json", exclude_none=True), ())) + "\n"


def _toml_lines(table: dict[str, object], path: tuple[str, ...]) -> list[str]:
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    lines = [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for key, value in table.items():
        if isinstance(value, dict) and value:
            here = (*path, key)
            lines += ["", f"[{'.'.join(here)}]", *_toml_lines(value, here)]
    return lines
