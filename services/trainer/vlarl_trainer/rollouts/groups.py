"""Groups of episodes that share task and placement, and are compared with each other.

    attempt 0 ──▶ kept
        └─ dropped, void ──▶ attempt 1 ──▶ kept
                                 └─ dropped, void ──▶ ... until `max_attempts`

A batch has as many slots as it has groups, and each slot has a chain of attempts of its own. A
group is reviewed when its last member has come back or was given up. Where it isn't kept, the
slot's next attempt is ordered, on another placement of another task, and nobody waits for the rest.
"""

from __future__ import annotations

import enum
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlarl.config import GroupsConfig, RunConfig
from vlarl.learning.seeds import Stream, generator_for
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.collector import RolloutError
from vlarl_trainer.rollouts.curriculum import Curriculum
from vlarl_trainer.rollouts.orders import Ended
from vlarl_trainer.rollouts.plan import Review, RolloutPlan

_LOG = logging.getLogger(__name__)
_FEWEST = 2
"""Members of a group that has something to compare."""


class Verdict(enum.Enum):
    """What becomes of a group."""

    KEPT = "kept"
    SUCCESSES = "dropped_success"
    FAILURES = "dropped_failure"
    VOID = "void"


def verdict_of(successes: Sequence[bool], keep_between: tuple[float, float]) -> Verdict:
    """What becomes of a group whose members ended so.

    keep_between: mean success of groups that are kept, both bounds included.
    """
    if len(successes) < _FEWEST:
        return Verdict.VOID
    mean, (low, high) = sum(successes) / len(successes), keep_between
    if low <= mean <= high:
        return Verdict.KEPT
    return Verdict.SUCCESSES if mean > high else Verdict.FAILURES


@dataclass(frozen=True)
class Group:
    """One attempt, when all its members have ended."""

    members: Sequence[rollout_pb2.Trajectory]
    """Those that came back."""
    verdict: Verdict

    @property
    def deviation(self) -> float:
        """Population deviation of its episodes' returns."""
        return float(np.std([sum(member.scores.total) for member in self.members]))


Chain = Sequence[Group]
"""A slot's attempts that have ended, the latest last."""


class GroupPlan(RolloutPlan):
    """Orders `episodes_per_iteration / group_size` groups, and drops those in which all went alike.

    Of an episode RUN:ITERATION:ATTEMPT:GROUP:MEMBER, placement and sampling are functions of the
    run's seed and these numbers. So is the task of a further attempt, by the probabilities that the
    curriculum has in this iteration.
    """

    def __init__(self, config: RunConfig, curriculum: Curriculum, unnorm_key: str) -> None:
        """config: of an algorithm that has groups; the rest as any plan's."""
        super().__init__(config, curriculum, unnorm_key)
        groups = config.trainer.groups
        assert groups is not None  # noqa: S101 - whoever calls this has seen it
        self._groups: GroupsConfig = groups
        self._slots = config.trainer.episodes_per_iteration // groups.group_size
        self._drawn: dict[tuple[int, int, int], list[rollout_pb2.EpisodeSpec]] = {}

    def first(self, iteration: int) -> list[rollout_pb2.EpisodeSpec]:
        """Attempt 0 of each group."""
        tasks = self._first_tasks(iteration, self._slots)
        return [
            member
            for slot, task in enumerate(tasks)
            for member in self._members(iteration, 0, slot, task)
        ]

    def further(self, iteration: int, ended: Ended) -> list[rollout_pb2.EpisodeSpec]:
        """Further attempts of the groups that weren't kept, one slot's after another's."""
        return [
            member
            for slot, chain in enumerate(self._chains(iteration, ended))
            for attempt in range(1, self._attempts(chain))
            for member in self._attempt(iteration, attempt, slot)
        ]

    def review(self, iteration: int, ended: Ended) -> Review:
        """The groups that are kept. Where there is none, all that can be compared: each slot's
        latest group of at least two, or the iteration would never be complete.
        """
        self._drawn.clear()
        chains = self._chains(iteration, ended)
        kept = [chain[-1] for chain in chains if chain and chain[-1].verdict is Verdict.KEPT]
        verdicts = Counter(group.verdict for chain in chains for group in chain)
        if kept and len(kept) < self._slots:
            self._say_what_is_missing(iteration, len(kept))
        if not kept:
            kept = [found for chain in chains if (found := _latest_to_compare(chain))]
            self._say_that_none_was_kept(iteration, len(kept), verdicts)
        learned = [member.spec.episode_id for group in kept for member in group.members]
        metrics = {f"groups_{verdict.value}": float(verdicts[verdict]) for verdict in Verdict} | {
            "group_attempts": sum(map(len, chains)) / self._slots,
            "episodes_per_learned": len(ended.trajectories) / len(learned),
            "group_deviation": float(np.mean([group.deviation for group in kept])),
        }
        return Review(learned, metrics)

    def _chains(self, iteration: int, ended: Ended) -> list[Chain]:
        """Each slot's."""
        members: dict[str, list[rollout_pb2.Trajectory]] = defaultdict(list)
        for trajectory in ended.trajectories:
            members[trajectory.spec.group_id].append(trajectory)
        for spec in ended.given_up:
            members[spec.group_id]  # of a group that nobody came back from, too
        return [self._chain(iteration, slot, members) for slot in range(self._slots)]

    def _chain(
        self, iteration: int, slot: int, members: dict[str, list[rollout_pb2.Trajectory]]
    ) -> Chain:
        chain: list[Group] = []
        while len(chain) < self._attempts(chain):
            group_id = f"{self._config.name}:{_place(iteration, len(chain), slot)}"
            if group_id not in members:
                break
            found = members[group_id]
            successes = [one.outcome == rollout_pb2.OUTCOME_SUCCESS for one in found]
            chain.append(Group(found, verdict_of(successes, self._groups.keep_between)))
        return chain

    def _attempts(self, chain: Chain) -> int:
        """How many a slot has ordered when these have ended."""
        if chain and chain[-1].verdict is Verdict.KEPT:
            return len(chain)
        return min(len(chain) + 1, self._groups.max_attempts)

    def _attempt(self, iteration: int, attempt: int, slot: int) -> list[rollout_pb2.EpisodeSpec]:
        """Of a task drawn anew. The same until the iteration's review."""
        at = (iteration, attempt, slot)
        if at not in self._drawn:
            generator = generator_for(self._config.seed, Stream.TASKS, *at)
            (task,) = self._curriculum.draw(1, generator)
            self._drawn[at] = self._members(*at, task)
        return self._drawn[at]

    def _members(
        self, iteration: int, attempt: int, slot: int, task: int
    ) -> list[rollout_pb2.EpisodeSpec]:
        seed, at = self._config.seed, (iteration, attempt, slot)
        group = _place(*at)
        placement = _seed(seed, Stream.GROUP, *at)
        return [
            self._order(
                f"{group}:{member:02d}",
                iteration,
                task,
                placement,
                _seed(seed, Stream.MEMBER, *at, member),
                group,
            )
            for member in range(self._groups.group_size)
        ]

    def _say_what_is_missing(self, iteration: int, kept: int) -> None:
        section, groups = f"trainer.{self._config.trainer.algorithm}", self._groups
        _LOG.warning(
            "iteration %d learns from %d of %d groups: of the others none of %d attempts "
            "(%s.max_attempts) had a mean success within %s.keep_between, [%g, %g]",
            iteration,
            kept,
            self._slots,
            groups.max_attempts,
            section,
            section,
            *groups.keep_between,
        )

    def _say_that_none_was_kept(
        self, iteration: int, compared: int, verdicts: Counter[Verdict]
    ) -> None:
        """Raises RolloutError where there is nothing to compare, either."""
        if not compared:
            raise RolloutError(
                f"iteration {iteration} has nothing to learn from: no group of {self._slots} had "
                f"two episodes that came back, in {self._groups.max_attempts} attempts; the "
                "causes are above"
            )
        mostly_solved = verdicts[Verdict.SUCCESSES] > verdicts[Verdict.FAILURES]
        _LOG.warning(
            "iteration %d: NO GROUP has a mean success within trainer.%s.keep_between, [%g, %g]: "
            "%d had more, %d less, %d too few episodes. It learns from the latest %d, of which "
            "there is little to learn: %s",
            iteration,
            self._config.trainer.algorithm,
            *self._groups.keep_between,
            verdicts[Verdict.SUCCESSES],
            verdicts[Verdict.FAILURES],
            verdicts[Verdict.VOID],
            compared,
            _HARDER if mostly_solved else _EASIER,
        )


_EASIER = (
    "begin with easier tasks or a policy that sometimes succeeds (docs/sft.md), raise "
    "trainer.temperature, or widen keep_between"
)
_HARDER = "the tasks are solved: take harder ones, or widen keep_between"


def _place(iteration: int, attempt: int, slot: int) -> str:
    return f"{iteration:05d}:{attempt:02d}:{slot:04d}"


def _seed(seed: int, stream: Stream, *position: int) -> int:
    """A seed of 63 bits."""
    return int(generator_for(seed, stream, *position).integers(2**63, dtype=np.uint64))


def _latest_to_compare(chain: Chain) -> Group | None:
    return next((one for one in reversed(chain) if one.verdict is not Verdict.VOID), None)
