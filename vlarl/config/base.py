"""What every section of a configuration shares: strict keys, and errors that say what to do."""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

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


@dataclass(frozen=True)
class OneOf:
    """Makes a table of the file one of several sections: `Annotated[A | B, OneOf("model")]`.

    A key that all of them have says which it is; without that key it is the first. Keys that only
    the others have are ignored, so that a file can keep them while it chooses another section.
    """

    key: str

    def choice(self, section: type[Section]) -> str:
        """The key's value that chooses this section."""
        (value,) = typing.get_args(section.model_fields[self.key].annotation)  # Literal["..."]
        return str(value)

    def __get_pydantic_core_schema__(
        self, union: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        sections = {self.choice(one): one for one in sections_in(union)}
        table = core_schema.tagged_union_schema(
            {choice: handler.generate_schema(one) for choice, one in sections.items()}, self.key
        )
        return core_schema.no_info_before_validator_function(
            functools.partial(self._chosen, sections), table
        )

    def _chosen(self, sections: Mapping[str, type[Section]], table: object) -> object:
        """The table with the key that chooses, and without the keys of the other sections."""
        if not isinstance(table, Mapping):
            return table
        choice = table.get(self.key, next(iter(sections)))
        own = sections.get(str(choice))
        if own is None:  # pydantic says what it may be
            return table
        known = {key for one in sections.values() for key in one.model_fields}
        ignored = known - own.model_fields.keys()
        return {self.key: choice} | {key: table[key] for key in table if key not in ignored}


def sections_in(annotation: object) -> tuple[type[Section], ...]:
    """The sections that a field's annotation names, in order: of `X` and `X | None` one, of `X | Y`
    (see `OneOf`) several, of anything else none.
    """
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        options = typing.get_args(annotation)
        return tuple(section for option in options for section in sections_in(option))
    return ()


def _below(annotation: object, key: int | str) -> object:
    """The annotation of a key's value, in a table that is annotated so; None: no such key."""
    if typing.get_origin(annotation) is dict:  # tables that the file names itself
        return typing.get_args(annotation)[1]
    fields = (section.model_fields.get(str(key)) for section in sections_in(annotation))
    return next((field.annotation for field in fields if field), None)


def _problems(root: type[Section], error: ValidationError) -> Iterator[ErrorDetails]:
    """What pydantic found, each with the keys that lead to it in the file.

    Where a table is `OneOf` several, pydantic puts the choice among the keys.
    """
    for problem in error.errors():
        annotation: object = root
        path: list[int | str] = []
        chosen = True
        for part in problem["loc"]:
            if not chosen:
                chosen = True
                continue
            path.append(part)
            annotation = _below(annotation, part)
            chosen = len(sections_in(annotation)) < 2
        yield {**problem, "loc": tuple(path)}


def explain(root: type[Section], error: ValidationError, source: str) -> ConfigError:
    """One readable error for everything pydantic found, with the nearest known key for a typo."""
    problems = list(_problems(root, error))
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
        elif problem["type"] == "union_tag_invalid":
            lines.append(_unknown_choice(key, problem))
        elif problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
            # Of several keys together; the sentence names them, and their values.
            sentence = str(problem["ctx"]["error"])
            lines.append(f"{key}: {sentence}" if key else sentence)
        else:
            hint = "; write a list as [0, 1]" if problem["type"] == "tuple_type" else ""
            lines.append(f"{key}: {problem['msg']} (got {problem['input']!r}){hint}")
    return ConfigError(f"{source}: " + "\n  ".join(["", *lines]).strip())


def _unknown_choice(table: str, problem: ErrorDetails) -> str:
    """Of a table that is `OneOf` several, and of none of them."""
    context = problem["ctx"]
    key = context["discriminator"].strip("'")
    *others, last = context["expected_tags"].split(", ")
    wanted = f"{', '.join(others)} or {last}"
    return f"{table}.{key}: Input should be {wanted} (got {context['tag']!r})"


def unknown_keys(root: type[Section], values: Mapping[str, object]) -> list[str]:
    """The keys that the section doesn't know; none where the whole is for another command."""
    try:
        root.model_validate(values)
    except ValidationError as error:
        problems = list(_problems(root, error))
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
    table: object = root
    for key in path[:-1]:
        table = _below(table, key)
    beside = {key: [repr(key)] for section in sections_in(table) for key in section.model_fields}
    anywhere: dict[str, list[str]] = {}
    for key in dict.fromkeys(_all_keys(root)):
        anywhere.setdefault(key.rpartition(".")[2], []).append(key)
    for known, cutoff in ((beside, 0.75), (anywhere, 0.75), (beside, 0.5)):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
            return f"did you mean {' or '.join(known[near[0]])}?"
    return f"known: {', '.join(beside)}"


def _all_keys(section: type[Section], path: str = "") -> Iterator[str]:
    """section.key of each; one that several sections of a table have comes several times."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}"
        for inner in sections_in(field.annotation):
            yield from _all_keys(inner, f"{path}{name}.")


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
