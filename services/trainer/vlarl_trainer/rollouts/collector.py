"""From the queue: the scored trajectories of the episodes that were ordered."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from vlarl.errors import FatalError
from vlarl.invocation import invocation
from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import DeadLetter, RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.frames import FrameFile, SharedFrames
from vlarl_trainer.rollouts.orders import Ended, Further, Orders

_LOG = logging.getLogger(__name__)
_BLOCK_SECONDS = 1.0


class RolloutError(FatalError):
    """Episodes don't come back; the message says what to look at."""


@dataclass(frozen=True)
class Collected:
    """What became of the episodes of one order."""

    deliveries: list[Delivery[rollout_pb2.Trajectory]]
    """In the order of the episodes, whatever order they arrived in."""
    missing: list[DeadLetter]
    """Those that were given up, with their causes."""
    file: FrameFile | None = None
    """Has the trajectories' frames; none: they carry them."""
    superfluous: Sequence[Delivery[rollout_pb2.Trajectory]] = ()
    """Came beside them, and nobody wants them: a run goes on otherwise than it ordered them."""

    @property
    def trajectories(self) -> list[rollout_pb2.Trajectory]:
        """The trajectories alone."""
        return [delivery.message for delivery in self.deliveries]

    @property
    def ended(self) -> Ended:
        """The same without what the queue knows of it."""
        return Ended(self.trajectories, [letter.spec for letter in self.missing])

    def only(self, episodes: Sequence[str]) -> Collected:
        """Those with these ids, in this order."""
        by_id = {delivery.message.spec.episode_id: delivery for delivery in self.deliveries}
        return replace(self, deliveries=[by_id[one] for one in episodes])

    def frames(self) -> SharedFrames | None:
        """Those that the trajectories don't carry, in the order that an `Experience` has."""
        if self.file is None:
            return None
        return self.file.frames(self.deliveries)

    def by_task(self) -> Iterator[list[rollout_pb2.Trajectory]]:
        """The trajectories with their frames, one task's after another's."""
        tasks: dict[tuple[str, int], list[Delivery[rollout_pb2.Trajectory]]] = defaultdict(list)
        for delivery in self.deliveries:
            task = delivery.message.spec.task
            tasks[task.suite, task.index].append(delivery)
        for members in tasks.values():
            file = self.file
            yield [one.message if file is None else file.whole(one) for one in members]

    @property
    def reward_seconds(self) -> float:
        """How long the last rewards were waited for once all episodes had ended."""
        ended = max((delivery.ended for delivery in self.deliveries), default=0.0)
        return max((delivery.added for delivery in self.deliveries), default=0.0) - ended


class Collector:
    """Orders episodes and waits for their trajectories."""

    def __init__(
        self, queue: RolloutQueue, run_id: str, timeout_seconds: float, reward_terms: str = ""
    ) -> None:
        """Connects nothing.

        Args:
            queue: where episodes go and trajectories come from.
            run_id: whose they are.
            timeout_seconds: without a finished episode, after which collecting fails.
            reward_terms: what rewards have to be made by; empty: by anything.
        """
        self._queue = queue
        self._reward_terms = reward_terms
        self._rescored: set[str] = set()
        self._run_id = run_id
        self._timeout = timeout_seconds
        self._arrived: dict[str, Delivery[rollout_pb2.Trajectory]] = {}
        self._dead_seen = -1
        self._files: defaultdict[int, FrameFile] = defaultdict(FrameFile)

    async def issue(self, specs: Sequence[rollout_pb2.EpisodeSpec]) -> None:
        """Orders episodes, but for those that are in the queue, arrived, or given up already."""
        known = self._arrived.keys() | (await self._given_up()).keys()
        await self._queue.issue(spec for spec in specs if spec.episode_id not in known)

    async def collect(
        self,
        specs: Sequence[rollout_pb2.EpisodeSpec],
        *,
        learned: int,
        oldest: int,
        further: Further | None = None,
    ) -> Collected:
        """Waits until each of these episodes has come back or has been given up, and each further
        one that is wanted then.

        One that an older policy acted in is ordered again: where all services were restarted,
        simulators may go on before the policy server has the run's weights back. So is one that
        was ordered or scored otherwise, before a run went on with another temperature, say, or
        another reward, and one that the queue has lost. Of a group all are ordered again together,
        once its last one has ended; and `further` is asked about whole groups only.

        Args:
            specs: the episodes, of one iteration.
            learned: trajectories of iterations before this one are durable in a checkpoint; a
                copy that the queue still holds is acknowledged.
            oldest: policy version that every action must have at least.
            further: says what is wanted beside these; none: nothing is.

        Raises:
            RolloutError: nothing has come back for too long, or all was given up, or the reward
                servers are configured otherwise than this trainer.
        """
        orders = Orders(specs, further)
        self._dead_seen = -1
        await self._take_ended(orders, oldest)
        while waiting := orders.waiting(self._arrived):
            orders.dead |= await self._next(waiting, learned)
            await self._take_ended(orders, oldest)
        wanted = [spec.episode_id for spec in orders.wanted(self._taken(orders))]
        missing = [orders.dead[one] for one in wanted if one not in self._arrived]
        for letter in missing:
            _log_missing(letter)
        if wanted and len(missing) == len(wanted):
            raise RolloutError(
                f"all {len(wanted)} episodes were given up, the first at the {missing[0].stage} "
                f"stage: {missing[0].cause}"
            )
        found = [self._arrived.pop(one) for one in wanted if one in self._arrived]
        trained = [spec.iteration for spec in specs[:1] if _to_be_learned(spec, learned)]
        file = self._files.pop(trained[0], None) if trained else None
        return Collected(found, missing, file, self._superfluous(trained))

    async def _take_ended(self, orders: Orders, oldest: int) -> None:
        """Takes the units that have ended as they are wanted, and orders what is wanted then."""
        while ended := orders.ended(self._arrived):
            for unit, members in ended:
                if not await self._order_again(orders, members, oldest):
                    orders.take(unit)
            if new := orders.extend(self._taken(orders)):
                await self.issue(new)
                # Some of them may have been given up before this trainer began.
                self._dead_seen = -1

    async def _order_again(self, orders: Orders, members: Sequence[str], oldest: int) -> bool:
        """Orders the members of a unit again if one has arrived, but not as it is wanted; returns
        whether.
        """
        arrived = [one for one in members if one in self._arrived]
        reasons = {one: self._reason(orders.specs[one], oldest) for one in arrived}
        if not any(reasons.values()):
            return False
        for one, reason in reasons.items():
            because = reason or "another of its group is"
            _LOG.warning("episode %s is ordered again: %s", one, because)
        await self._queue.acknowledge(self._run_id, [self._arrived.pop(one) for one in arrived])
        await self._queue.issue(orders.specs[one] for one in arrived)
        return True

    def _taken(self, orders: Orders) -> Ended:
        """What became of the episodes whose units were taken."""
        came = [self._arrived[one].message for one in orders.taken if one in self._arrived]
        return Ended(came, [orders.specs[one] for one in orders.taken if one not in self._arrived])

    def _superfluous(self, iterations: Sequence[int]) -> list[Delivery[rollout_pb2.Trajectory]]:
        """What arrived to be learned from in these iterations, and is left."""
        left = [
            one
            for one, delivery in self._arrived.items()
            if delivery.message.spec.purpose == rollout_pb2.PURPOSE_TRAINING
            and delivery.message.spec.iteration in iterations
        ]
        return [self._arrived.pop(one) for one in left]

    def _reason(self, order: rollout_pb2.EpisodeSpec, oldest: int) -> str:
        """Why the trajectory that arrived isn't what is wanted; empty: it is."""
        trajectory = self._arrived[order.episode_id].message
        return _unwanted(trajectory, order, oldest) or self._misjudged(trajectory)

    def _misjudged(self, trajectory: rollout_pb2.Trajectory) -> str:
        """Why its rewards aren't those that are wanted; empty: they are.

        Raises:
            RolloutError: it was ordered again for that, and they still aren't.
        """
        terms, episode = trajectory.scores.terms, trajectory.spec.episode_id
        if not (terms and self._reward_terms) or terms == self._reward_terms:
            return ""
        if episode in self._rescored:
            raise RolloutError(
                f"the rewards of episode {episode} were made by another configuration than this "
                "trainer's, twice: give the reward servers the same [reward] and [trainer]"
            )
        self._rescored.add(episode)
        return "its rewards were made by another configuration"

    async def as_they_end(
        self, specs: Sequence[rollout_pb2.EpisodeSpec]
    ) -> AsyncIterator[Collected]:
        """Yields episodes as they end, for whoever needn't see all at once and settles each.

        Raises:
            RolloutError: nothing has come back for too long.
        """
        waiting = {spec.episode_id: spec for spec in specs}
        while waiting:
            dead = await self._next(waiting, learned=0)
            ended = sorted(waiting.keys() & (self._arrived.keys() | dead.keys()))
            for one in ended:
                del waiting[one]
            arrived = [self._arrived.pop(one) for one in ended if one in self._arrived]
            missing = [dead[one] for one in ended if one in dead]
            for letter in missing:
                _log_missing(letter)
            yield Collected(arrived, missing)

    async def _next(
        self, waiting: Mapping[str, rollout_pb2.EpisodeSpec], learned: int
    ) -> dict[str, DeadLetter]:
        """Waits until one of the episodes arrives or is given up.

        Returns:
            Those of them that have been given up.
        """
        clock = asyncio.get_running_loop().time
        started = clock()

        def keep(one: Delivery[rollout_pb2.Trajectory]) -> Delivery[rollout_pb2.Trajectory]:
            return self._kept(one, learned)

        while clock() - started <= self._timeout:
            found = await self._queue.next_scored(self._run_id, len(waiting), _BLOCK_SECONDS, keep)
            await self._take(found, waiting.keys(), learned)
            dead: dict[str, DeadLetter] = {}
            count = await self._queue.dead_count()
            if not found or count != self._dead_seen:
                self._dead_seen, dead = count, await self._given_up()
            out = waiting.keys() - self._arrived.keys()
            if found or out & dead.keys():
                return {one: dead[one] for one in out & dead.keys()}
            await self._order_lost(waiting)
        raise RolloutError(
            f"no episode came back for {self._timeout:g} s ({len(waiting)} are out): are env "
            f"workers and a reward server running on this queue? (`{invocation()} queue`, "
            "trainer.rollout_timeout_seconds)"
        )

    async def _order_lost(self, waiting: Mapping[str, rollout_pb2.EpisodeSpec]) -> None:
        """Orders those again that the queue doesn't know of: it was emptied."""
        lost = waiting.keys() - await self._queue.outstanding(self._run_id)
        if lost:
            _LOG.warning("%d episodes are ordered again: the queue has lost them", len(lost))
            await self._queue.issue(waiting[one] for one in sorted(lost))

    async def _take(
        self,
        found: Sequence[Delivery[rollout_pb2.Trajectory]],
        wanted: Set[str],
        learned: int,
    ) -> None:
        done = []
        for delivery in found:
            spec = delivery.message.spec
            early = _to_be_learned(spec, learned)
            if (spec.episode_id in wanted or early) and spec.episode_id not in self._arrived:
                self._arrived[spec.episode_id] = delivery
            else:
                done.append(delivery)
        await self._queue.acknowledge(self._run_id, done)

    def _kept(
        self, delivery: Delivery[rollout_pb2.Trajectory], learned: int
    ) -> Delivery[rollout_pb2.Trajectory]:
        """What is kept of a trajectory until all have come: the frames of those to learn from go
        into their iteration's file.
        """
        spec = delivery.message.spec
        if not _to_be_learned(spec, learned):
            return delivery
        return self._files[spec.iteration].move(delivery)

    async def _given_up(self) -> dict[str, DeadLetter]:
        letters = await self._queue.dead_letters(self._run_id)
        return {letter.spec.episode_id: letter for letter in letters}

    async def settle(self, collected: Collected) -> None:
        """Tells the queue to forget these episodes for good, and forgets their frames."""
        if collected.file is not None:
            collected.file.close()
        done = [*collected.deliveries, *collected.superfluous]
        await self._queue.acknowledge(self._run_id, done)
        await self._queue.abandon(
            self._run_id, [letter.spec.episode_id for letter in collected.missing]
        )


def _unwanted(
    trajectory: rollout_pb2.Trajectory, order: rollout_pb2.EpisodeSpec, oldest: int
) -> str:
    """Why a trajectory isn't what is wanted; empty: it is."""
    if (acted := _oldest_action(trajectory)) < oldest:
        return f"policy version {acted:g} acted, {oldest} is wanted"
    was, wanted = _terms(trajectory.spec), _terms(order)
    for name in wanted:
        if was[name] != wanted[name]:
            return f"it was ordered with {name} {was[name]}, {wanted[name]} is wanted"
    return ""


def _terms(spec: rollout_pb2.EpisodeSpec) -> dict[str, object]:
    """What a trajectory must have in common with its order."""
    terms = {name: getattr(spec, name) for name in ("temperature", "max_actions", "unnorm_key")}
    # Without a group, tasks may differ: a run may go on with others while episodes are out.
    if spec.group_id:
        task = f"{spec.task.suite} {spec.task.index}"
        terms |= {"group_id": spec.group_id, "task": task, "placement": spec.placement_seed}
    return terms


def _oldest_action(trajectory: rollout_pb2.Trajectory) -> float:
    """The oldest policy version that acted; infinite where none did."""
    return min((step.action.policy_version for step in trajectory.steps), default=math.inf)


def _to_be_learned(spec: rollout_pb2.EpisodeSpec, learned: int) -> bool:
    return spec.purpose == rollout_pb2.PURPOSE_TRAINING and spec.iteration >= learned


def _log_missing(letter: DeadLetter) -> None:
    _LOG.warning(
        "episode %s is missing: %s: %s", letter.spec.episode_id, letter.stage, letter.cause
    )
