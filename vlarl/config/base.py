"""What every section of a configuration shares: strict keys, and errors that say what to do."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from vlarl.errors import FatalError


class ConfigError(FatalError, ValueError):
    """A configuration that can't be used; the message names the key and says what to do."""


class Section(BaseModel):
    """A section of the configuration: typed, immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


def nested_section(annotation: object) -> type[Section] | None:
    """The section class inside a field's annotation (`X`, `X | None`), if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        for option in typing.get_args(annotation):
            if found := nested_section(option):
                return found
    return None


def _section_at(root: type[Section], path: tuple[int | str, ...]) -> type[Section] | None:
    annotation: object = root
    for key in path:
        if typing.get_origin(annotation) is dict:  # tables that the file names itself
            annotation = typing.get_args(annotation)[1]
            continue
        section = nested_section(annotation)
        field = section.model_fields.get(str(key)) if section else None
        annotation = field.annotation if field else None
    return nested_section(annotation)


def explain(root: type[Section], error: ValidationError, source: str) -> ConfigError:
    """One readable error for everything pydantic found, with the nearest known key for a typo."""
    lines = []
    for problem in error.errors():
        path = problem["loc"]
        key = ".".join(str(part) for part in path)
        if problem["type"] == "extra_forbidden":
            section = _section_at(root, path[:-1])
            known = list(section.model_fields) if section else []
            near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            lines.append(f"{key}: unknown key{hint}")
        elif problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
            # Of several keys together; the sentence names them, and their values.
            said = str(problem["ctx"]["error"])
            lines.append(f"{key}: {said}" if key else said)
        else:
            lines.append(f"{key}: {problem['msg']} (got {problem['input']!r})")
    return ConfigError(f"{source}: " + "\n  ".join(["", *lines]).strip())


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`base` with the values of `over` laid on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged
