"""Reads BDDL files, LIBERO's scene descriptions: nested lists in parentheses.

    (define (problem LIBERO_Tabletop_Manipulation) (:language pick up the bowl) ...)

Everything keeps the line it stands in, for whoever finds fault with it. A comment goes from a
semicolon to the end of its line. Upper and lower case are one, except in the instruction.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from vlarl.config import ConfigError

_COMMENT = re.compile(r";[^\n]*")
_TOKEN = re.compile(r"[()]|[^\s()]+")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""First bytes by which editors say how a text is encoded."""

LiberosTokens = list["str | LiberosTokens"]
"""What LIBERO's own scanner makes of a file."""


class BddlError(ConfigError):
    """A BDDL file that can't be used; the message names file, line and what is wrong."""

    def __init__(self, file: Path, line: int, text: str) -> None:
        super().__init__(f"{file}:{line}: {text}")


@dataclass(frozen=True)
class Word:
    """A name or number, in lower case, in its line, from 1."""

    text: str
    line: int


@dataclass(frozen=True)
class Group:
    """What stands in one pair of parentheses, which opens in `line`."""

    items: tuple[Word | Group, ...]
    line: int

    @property
    def head(self) -> str:
        """The first word; empty where there is none."""
        first = self.items[0] if self.items else None
        return first.text if isinstance(first, Word) else ""

    @property
    def words(self) -> tuple[Word, ...]:
        """The words among the items, without the first item."""
        return tuple(item for item in self.items[1:] if isinstance(item, Word))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups among the items."""
        return tuple(item for item in self.items if isinstance(item, Group))

    def tokens(self) -> LiberosTokens:
        """As LIBERO's own scanner returns it."""
        return [item.text if isinstance(item, Word) else item.tokens() for item in self.items]


def read_text(file: Path) -> str:
    """A file's text: UTF-8, or UTF-16 with its mark, with line feeds alone at line ends.

    Raises:
        BddlError: it is in neither.
        ConfigError: the file can't be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BddlError(file, line, "this isn't UTF-8; save the file as UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BddlError(file, line, "this isn't text; save the file as UTF-8")
    return text


def read_bddl(file: Path) -> Group:
    """The definition that a file holds.

    Raises:
        BddlError: parentheses that don't match, or something else beside the definition.
    """
    text = _without_comments(read_text(file))
    opened: list[tuple[int, list[Word | Group]]] = []
    whole: Group | None = None
    for found in _TOKEN.finditer(text):
        part, line = found.group(), text.count("\n", 0, found.start()) + 1
        if whole is not None:
            raise BddlError(file, line, "the definition has ended before; a parenthesis too many?")
        if part == "(":
            opened.append((line, []))
        elif not opened:
            raise BddlError(file, line, "a BDDL file begins with (define ...")
        elif part == ")":
            begin, items = opened.pop()
            group = Group(tuple(items), begin)
            if opened:
                opened[-1][1].append(group)
            else:
                whole = group
        else:
            opened[-1][1].append(Word(part.lower(), line))
    if opened:
        raise BddlError(file, opened[-1][0], "the parenthesis that opens here is never closed")
    if whole is None:
        raise BddlError(file, 1, "the file is empty")
    if whole.head != "define":
        raise BddlError(file, whole.line, "a BDDL file begins with (define ...")
    return whole


def instruction(file: Path) -> str:
    """The task in words, as (:language ...) has it: in one line, parentheses included.

    Raises:
        BddlError: there are no words.
    """
    text = _without_comments(read_text(file))
    whole = read_bddl(file)
    begin = re.search(r"\(\s*:language\b", text, re.IGNORECASE)
    if begin is None:
        raise BddlError(file, whole.line, "no (:language ...), which says what is to be done")
    depth, end = 1, begin.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    words = " ".join(text[begin.end() : end - 1].split())
    if not words:
        line = text.count("\n", 0, begin.start()) + 1
        raise BddlError(file, line, "(:language ...) is empty; it says what is to be done")
    return words


def _without_comments(text: str) -> str:
    return _COMMENT.sub("", text)
