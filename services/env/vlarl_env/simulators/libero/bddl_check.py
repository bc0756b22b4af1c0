"""Finds what is wrong in a BDDL file before a simulator meets it.

LIBERO reads such a file without a look: a misspelt name ends in a KeyError when the scene is built,
one in the goal when the first step is judged, and some mistakes end in nothing at all. What can be
named here: the kinds of things (`libero_objects.json`, made from LIBERO's own registry), the places
on them, regions, placements and goals. What shows only when the scene is built (no room) is left to
`vlarl_env.simulators.libero.scene`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vlarl_env.simulators.libero.bddl_reader import BddlError, Group, Word, instruction, read_bddl

WORKSPACES = {
    "libero_tabletop_manipulation": ("main_table", "table"),
    "libero_coffee_table_manipulation": ("coffee_table", "coffee_table"),
    "libero_floor_manipulation": ("floor", "floor"),
    "libero_kitchen_tabletop_manipulation": ("kitchen_table", "kitchen_table"),
    "libero_living_room_tabletop_manipulation": ("living_room_table", "living_room_table"),
    "libero_study_tabletop_manipulation": ("study_table", "study_table"),
}
"""LIBERO's problems: what things stand on, its name and its kind."""

_SECTIONS = (
    "problem",
    ":domain",
    ":requirements",
    ":language",
    ":regions",
    ":fixtures",
    ":objects",
    ":obj_of_interest",
    ":init",
    ":goal",
)
_NEEDED = ("problem", ":regions", ":fixtures", ":objects", ":init", ":goal")

_PLACING = ("on", "in")
_SETTING = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}
"""Predicates of a joint, and the ability that they ask of a thing."""

_GOALS = {
    "on": 2,
    "in": 2,
    "up": 1,
    "true": 1,
    "false": 1,
    "printjointstate": 1,
    "reachedabove": 1,
    "nearabove": 1,
    **dict.fromkeys(_SETTING, 1),
}
"""Predicates that a goal may use, and the things that they are about."""

_NAMED = 15
"""Names that a message lists at most."""

_ANGLE = re.compile(r"[-+*/.\de]*(pi)?[-+*/.\d]*")
"""An angle as LIBERO's files write it (0.5, -pi/4); LIBERO evaluates it as Python."""


@dataclass(frozen=True)
class _Kind:
    """What a kind of thing offers."""

    sites: tuple[str, ...] = ()
    can: tuple[str, ...] = ()


@cache
def _kinds() -> Mapping[str, _Kind]:
    table = json.loads(Path(__file__).with_name("libero_objects.json").read_text("utf-8"))
    return {
        name: _Kind(tuple(entry.get("sites", ())), tuple(entry.get("can", ())))
        for name, entry in table.items()
    }


def check_bddl(file: Path) -> str:
    """Checks a scene's file.

    Returns:
        Its instruction.

    Raises:
        BddlError: LIBERO couldn't build it, or its goal could never be judged.
    """
    words = instruction(file)
    _Check(file, read_bddl(file)).run()
    return words


def _tuples(part: Group) -> tuple[Group, ...]:
    """The lists of (:NAME ((a b) ...)), or the one of (:NAME (a b))."""
    return part.groups[0].groups or part.groups if part.groups else ()


@dataclass
class _Check:
    """The check of one file."""

    file: Path
    whole: Group
    kinds: dict[str, str] = field(default_factory=dict)
    """The kind of each thing, by its name."""
    regions: dict[str, Group] = field(default_factory=dict)
    """Regions by the name that placements and goals use: their thing's, and their own."""
    workspace: tuple[str, str] = ("", "")

    def run(self) -> None:
        sections = self._sections()
        self._problem(sections["problem"])
        self._things(sections[":fixtures"], fixtures=True)
        self._things(sections[":objects"], fixtures=False)
        for region in sections[":regions"].groups:
            self._region(region)
        self._placements(sections[":init"])
        self._goal(sections[":goal"])

    def _sections(self) -> dict[str, Group]:
        found: dict[str, Group] = {}
        for group in self.whole.groups:
            if group.head not in _SECTIONS:
                raise self._unknown(group, "section", group.head, _SECTIONS)
            if group.head in found:
                raise self._error(group, f"{group.head} is here twice; write it once")
            found[group.head] = group
        for name in _NEEDED:
            if name not in found:
                raise self._error(self.whole, f"there is no ({name} ...)")
        domain = found.get(":domain")
        if domain is not None and [word.text for word in domain.words] != ["robosuite"]:
            raise self._error(domain, "LIBERO's only domain is (:domain robosuite)")
        return found

    def _problem(self, section: Group) -> None:
        name = section.words[-1].text if section.words else ""
        if name not in WORKSPACES:
            raise self._unknown(section, "problem", name, WORKSPACES)
        self.workspace = WORKSPACES[name]

    def _things(self, section: Group, *, fixtures: bool) -> None:
        """NAME ... - KIND, repeated."""
        names: list[Word] = []
        seen: set[str] = set()
        words = iter(section.words)
        for word in words:
            if word.text != "-":
                names.append(word)
                continue
            kind = next(words, None)
            if kind is None or not names:
                raise self._error(word, "a line of things reads NAME ... - KIND")
            stands_for_itself = fixtures and kind.text == self.workspace[1]
            if not stands_for_itself and kind.text not in _kinds():
                known = [*_kinds(), *([self.workspace[1]] if fixtures else [])]
                raise self._unknown(kind, "kind of object", kind.text, known)
            if kind.text in seen:
                text = f"kind {kind.text} is here twice, of which LIBERO keeps the last; write "
                raise self._error(kind, f"{text}its names in one list")
            seen.add(kind.text)
            for name in names:
                if name.text in self.kinds:
                    raise self._error(name, f"{name.text} is here twice")
                self.kinds[name.text] = kind.text
            names = []
        if names:
            raise self._error(names[0], f"{names[0].text} has no kind; write NAME ... - KIND")

    def _region(self, region: Group) -> None:
        attributes = {part.head: part for part in region.groups}
        for name, part in attributes.items():
            if name not in (":target", ":ranges", ":yaw_rotation", ":rgba"):
                known = (":target", ":ranges", ":yaw_rotation", ":rgba")
                raise self._unknown(part, "part of a region", name, known)
        target = attributes.get(":target")
        if target is None or len(target.words) != 1:
            raise self._error(region, f"region {region.head} needs one (:target THING)")
        if ranges := attributes.get(":ranges"):
            for rectangle in self._numbers(ranges, 4):
                if rectangle[0] > rectangle[2] or rectangle[1] > rectangle[3]:
                    text = f"a range of region {region.head} ends before it begins: "
                    raise self._error(ranges, text + "it is (x y x y), the smaller corner first")
        if colour := attributes.get(":rgba"):
            self._numbers(colour, 4)
        if turned := attributes.get(":yaw_rotation"):
            for pair in _tuples(turned):
                for angle in pair.items:
                    if not isinstance(angle, Word) or not _ANGLE.fullmatch(angle.text):
                        raise self._error(pair, f"{turned.head} holds angles, (FROM TO)")
        self.regions[f"{target.words[0].text}_{region.head}"] = region

    def _numbers(self, part: Group, count: int) -> list[list[float]]:
        """Tuples of `count` finite numbers: ((a b c d) ...)."""
        found = []
        for group in _tuples(part):
            try:
                numbers = [float(item.text) for item in group.items if isinstance(item, Word)]
            except ValueError:
                numbers = []
            if len(numbers) != count or not all(map(math.isfinite, numbers)):
                raise self._error(group, f"{part.head} holds lists of {count} numbers")
            found.append(numbers)
        return found

    def _usable(self, name: Word) -> None:
        """Refuses a region that its thing doesn't have, where it is used."""
        region = self.regions[name.text]
        target = next(part for part in region.groups if part.head == ":target").words[0]
        if target.text not in self.kinds:
            raise self._unknown(target, "thing", target.text, self.kinds)
        if target.text == self.workspace[0]:
            if not any(part.head == ":ranges" and part.groups for part in region.groups):
                raise self._error(region, f"region {region.head} needs (:ranges ((x y x y)))")
        elif region.head not in (sites := _kinds()[self.kinds[target.text]].sites):
            kind = self.kinds[target.text]
            if not sites:
                raise self._error(region, f"a {kind} has no place that could be a region")
            raise self._unknown(region, f"place of a {kind}", region.head, sites)

    def _placements(self, section: Group) -> None:
        placed: set[str] = set()
        for fact in section.groups:
            if fact.head not in (*_PLACING, *_SETTING):
                raise self._unknown(fact, "fact of :init", fact.head, (*_PLACING, *_SETTING))
            if fact.head in _SETTING:
                self._joint(fact)
                continue
            if len(fact.words) != 2:
                raise self._error(fact, f"({fact.head} THING PLACE) names two")
            thing, place = fact.words
            self._known(thing)
            if thing.text in placed:
                raise self._error(thing, f"{thing.text} is placed twice")
            placed.add(thing.text)
            if place.text in self.regions:
                self._usable(place)
            elif fact.head == "in" or self.kinds.get(place.text) in (None, self.workspace[1]):
                raise self._unknown(place, "place", place.text, [*self.regions, *self.kinds])
        for name, kind in self.kinds.items():
            if name not in placed and kind != self.workspace[1]:
                raise self._error(section, f"{name} is placed nowhere; write (On {name} REGION)")

    def _joint(self, fact: Group) -> None:
        if len(fact.words) != 1:
            raise self._error(fact, f"({fact.head} THING) names one")
        name = fact.words[0]
        if name.text in self.regions:
            self._usable(name)
            region = self.regions[name.text]
            owner = next(part for part in region.groups if part.head == ":target").words[0].text
        else:
            self._known(name)
            owner = name.text
        kind = self.kinds[owner]
        if kind == self.workspace[1] or _SETTING[fact.head] not in _kinds()[kind].can:
            raise self._error(fact, f"a {kind} can't be the subject of ({fact.head} ...)")

    def _goal(self, section: Group) -> None:
        wanted = section.groups
        if len(wanted) == 1 and wanted[0].head == "and":
            wanted = wanted[0].groups
        elif len(wanted) > 1:
            raise self._error(section, "several goals stand in one (And ...)")
        if not wanted:
            raise self._error(section, "the goal is empty, so that nothing would fulfil it")
        for fact in wanted:
            if fact.head not in _GOALS:
                raise self._unknown(fact, "predicate of a goal", fact.head, _GOALS)
            if len(fact.words) != _GOALS[fact.head] or fact.groups:
                count = {1: "one name", 2: "two names"}[_GOALS[fact.head]]
                raise self._error(fact, f"({fact.head} ...) takes {count}")
            if fact.head in _SETTING:
                self._joint(fact)
                continue
            for name in fact.words:
                if name.text in self.regions:
                    self._usable(name)
                elif name.text == self.workspace[0]:
                    raise self._error(
                        name, f"a goal can't be about {name.text}, but a region of it"
                    )
                else:
                    self._known(name)

    def _known(self, name: Word) -> None:
        if name.text not in self.kinds:
            raise self._unknown(name, "thing", name.text, [*self.kinds, *self.regions])

    def _unknown(
        self, where: Word | Group, what: str, name: str, known: Iterable[str]
    ) -> BddlError:
        choices = sorted(set(known))
        near = difflib.get_close_matches(name, choices, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        else:
            more = f" and {len(choices) - _NAMED} more" if len(choices) > _NAMED else ""
            hint = f"there are {', '.join(choices[:_NAMED]) or 'none'}{more}"
        return self._error(where, f"unknown {what} {name or '()'}; {hint}")

    def _error(self, where: Word | Group, text: str) -> BddlError:
        return BddlError(self.file, where.line, text)
