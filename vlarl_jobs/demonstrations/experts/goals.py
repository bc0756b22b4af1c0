"""What a BDDL file asks for, literal by literal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlarl.errors import FatalError

KNOWN = ("on", "in", "turnon", "open", "reachedabove", "nearabove")
"""Predicates that an expert can bring about."""


class NoExpertError(FatalError):
    """There is no expert for this task; the message says for which predicate."""


@dataclass(frozen=True)
class Goal:
    """One literal of a conjunction, e.g. on(akita_black_bowl_1, plate_1)."""

    predicate: str
    """In lower case."""
    subject: str
    """What is moved, opened, closed or turned."""
    place: str | None = None
    """Object or region that it comes to; none where the predicate has one argument."""

    @property
    def literal(self) -> list[str]:
        """As LIBERO's parser has it."""
        return [self.predicate, self.subject, *([self.place] if self.place else [])]


def read_goals(problem: Mapping[str, Any]) -> list[Goal]:
    """The goals of a parsed BDDL problem, in the file's order."""
    return [
        Goal(predicate.lower(), subject, rest[0] if rest else None)
        for predicate, subject, *rest in problem["goal_state"]
    ]


def require_expert(goals: Sequence[Goal]) -> None:
    """Makes sure that there is an expert for all goals.

    Raises:
        NoExpertError: one of them no expert knows.
    """
    for goal in goals:
        if goal.predicate not in KNOWN:
            raise NoExpertError(
                f"no expert can bring about {goal.predicate}({goal.subject}); they know "
                f"{', '.join(KNOWN)}"
            )
