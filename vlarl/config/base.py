"""What every section of a configuration shares: strict keys, and errors that say what to do."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vlarl.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


NAME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$"
"""Of what names keys of the queue, labels of metrics and folders."""


class Section(BaseModel):
    """A section of the configuration: typed, immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
    example: ClassVar[str] = ""
    """Of sections that are whole files: the command that takes one, and an example."""


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
    problems = error.errors()
    lines = []
    if wrong := _wrong_kind(root, problems):
        lines.append(wrong)
        problems = [one for one in problems if len(one["loc"]) > 1]
    for problem in problems:
        path = problem["loc"]
        key = ".".join(str(part) for part in path)
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; {_suggestion(root, path)}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing")
        elif problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
            # Of several keys together; the sentence names them, and their values.
            said = str(problem["ctx"]["error"])
            lines.append(f"{key}: {said}" if key else said)
        else:
            hint = "; write a list as [0, 1]" if problem["type"] == "tuple_type" else ""
            lines.append(f"{key}: {problem['msg']} (got {problem['input']!r}){hint}")
    return ConfigError(f"{source}: " + "\n  ".join(["", *lines]).strip())


def unknown_keys(root: type[Section], values: Mapping[str, object]) -> list[str]:
    """The keys that the section doesn't know; none where the whole is for another command."""
    try:
        root.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        if _wrong_kind(root, problems):
            return []
        extra = [one for one in problems if one["type"] == "extra_forbidden"]
        return [".".join(str(part) for part in one["loc"]) for one in extra]
    return []


def _wrong_kind(root: type[Section], problems: Sequence[ErrorDetails]) -> str:
    """What is wrong with a file that is probably meant for another command; empty: nothing.

    It lacks whole tables, or has several that are unknown: a typo is not that.
    """
    top = [problem for problem in problems if len(problem["loc"]) == 1]
    missing = [str(one["loc"][0]) for one in top if one["type"] == "missing"]
    extra = [one for one in top if one["type"] == "extra_forbidden"]
    if not missing and sum(isinstance(one["input"], Mapping) for one in extra) < 2:
        return ""
    unknown = [str(one["loc"][0]) for one in extra]
    keys = {"missing": missing, "unknown": unknown}
    found = "; ".join(f"{word} keys {', '.join(some)}" for word, some in keys.items() if some)
    return f"{found}: {root.example}"


def _suggestion(root: type[Section], path: tuple[int | str, ...]) -> str:
    """What may be meant by an unknown key: one beside it, or one of another section."""
    name = str(path[-1])
    section = _section_at(root, path[:-1])
    beside = {key: [repr(key)] for key in section.model_fields} if section else {}
    anywhere: dict[str, list[str]] = {}
    for key in _all_keys(root):
        anywhere.setdefault(key.rpartition(".")[2], []).append(key)
    for known, cutoff in ((beside, 0.75), (anywhere, 0.75), (beside, 0.5)):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
            return f"did you mean {' or '.join(known[near[0]])}?"
    return f"known: {', '.join(beside)}"


def _all_keys(section: type[Section], path: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(f"{path}{name}")
        if inner := nested_section(field.annotation):
            keys += _all_keys(inner, f"{path}{name}.")
    return keys


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
