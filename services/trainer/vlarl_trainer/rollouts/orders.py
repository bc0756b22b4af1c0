"""The episodes of one collection: which are out, and which have ended together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from vlarl.queue.rollout_queue import DeadLetter
from vlarl.rollout.v1 import rollout_pb2


@dataclass(frozen=True)
class Ended:
    """What became of episodes."""

    trajectories: Sequence[rollout_pb2.Trajectory]
    """Of those that came back; they needn't have their frames."""
    given_up: Sequence[rollout_pb2.EpisodeSpec]
    """The orders of the others."""


Further = Callable[[Ended], Sequence[rollout_pb2.EpisodeSpec]]
"""All episodes that are wanted beside those that were ordered first, by what has ended of all so
far; always in the same order, and never fewer than before.
"""


class Orders:
    """Episodes that were ordered, in units that are taken or ordered anew as a whole.

    The unit of an episode is its group; one without a group is a unit of its own.
    """

    def __init__(self, first: Sequence[rollout_pb2.EpisodeSpec], further: Further | None) -> None:
        """further: none where the first are all."""
        self.specs: dict[str, rollout_pb2.EpisodeSpec] = {}
        """By id."""
        self.dead: dict[str, DeadLetter] = {}
        """Those that were given up."""
        self.taken: list[str] = []
        """Those of units that have ended as they are wanted."""
        self._first = first
        self._further = further
        self._open: dict[str, list[str]] = {}
        self._add(first)

    def wanted(self, ended: Ended) -> list[rollout_pb2.EpisodeSpec]:
        """All that are wanted when these have ended, whatever order they ended in."""
        return [*self._first, *(self._further(ended) if self._further else ())]

    def extend(self, ended: Ended) -> Sequence[rollout_pb2.EpisodeSpec]:
        """Adds what is wanted when these have ended; returns what is new of it."""
        return self._add(self._further(ended)) if self._further else ()

    def _add(self, specs: Sequence[rollout_pb2.EpisodeSpec]) -> Sequence[rollout_pb2.EpisodeSpec]:
        new = [spec for spec in specs if spec.episode_id not in self.specs]
        for spec in new:
            self.specs[spec.episode_id] = spec
            self._open.setdefault(spec.group_id or spec.episode_id, []).append(spec.episode_id)
        return new

    def waiting(self, arrived: Collection[str]) -> Mapping[str, rollout_pb2.EpisodeSpec]:
        """The episodes that neither arrived nor were given up."""
        return {
            one: self.specs[one]
            for members in self._open.values()
            for one in members
            if one not in arrived and one not in self.dead
        }

    def ended(self, arrived: Collection[str]) -> list[tuple[str, list[str]]]:
        """Units not taken yet whose members have all ended; with these."""
        return [
            (unit, members)
            for unit, members in self._open.items()
            if all(one in arrived or one in self.dead for one in members)
        ]

    def take(self, unit: str) -> None:
        """Its members have ended as they are wanted."""
        self.taken += self._open.pop(unit)
