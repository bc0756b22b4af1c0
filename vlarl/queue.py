"""The rollout queue: episodes out, trajectories back, on Redis Streams.

    trainer --episodes--> env workers --trajectories--> reward servers --scored:RUN--> trainer
                                      --unscored ones------------------------------>

An entry's life: *added* to a stream, *delivered* to one consumer of the stream's group, then either
moved to the next stream, handed back, or (after too many deliveries) moved to the dead letters.
Every move is one Lua script that begins with XACK: only the consumer that still holds the entry can
move it, so an episode that two workers finished goes on once. A consumer tells Redis that it lives
by claiming its own entries again; entries that stay idle for `claim_after_seconds` are taken over.

Nothing is bounded by MAXLEN, which drops entries that are pending. The bound is the set of
*outstanding* episodes: ordered, and not yet learned from. Reads happen at least once, moves exactly
once, and the trainer acknowledges a trajectory when the checkpoint that learned from it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message
from redis.exceptions import RedisError, ResponseError

from vlarl.blobs import BlobStore, open_blobs
from vlarl.config import QueueConfig
from vlarl.errors import FatalError
from vlarl.invocation import invocation
from vlarl.queue_connection import open_redis
from vlarl.rollout.v1 import rollout_pb2

# One hash tag: all keys live in one slot of a Redis Cluster, as the script needs.
_PREFIX = "{vlarl}:"
EPISODES = f"{_PREFIX}episodes"
TRAJECTORIES = f"{_PREFIX}trajectories"
DEAD = f"{_PREFIX}dead"
ENV_GROUP, REWARD_GROUP, TRAINER_GROUP = "env", "reward", "trainer"

# KEYS: source stream, target stream. ARGV: group, entry, then the new entry's fields and values.
_MOVE = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
return 1
"""

# KEYS: outstanding set, episodes stream. ARGV: episode id, then the entry's fields and values.
_ISSUE = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
return 1
"""

M = TypeVar("M", bound=Message)


class QueueError(FatalError):
    """The queue can't be reached or refuses work; the message says what to do."""


def scored_stream(run_id: str) -> str:
    """The stream from which the trainer of this run learns."""
    return f"{_PREFIX}scored:{run_id}"


def _outstanding_key(run_id: str) -> str:
    return f"{_PREFIX}outstanding:{run_id}"


@dataclass(frozen=True)
class Delivery(Generic[M]):
    """A message and the entry that carried it."""

    entry_id: str
    stream: str
    group: str
    consumer: str
    message: M
    deliveries: int
    """How often its episode has been delivered at this stage, this time included."""
    fields: dict[bytes, bytes]

    @property
    def added(self) -> float:
        """When the entry was added: Unix time in seconds, by the queue's clock."""
        return int(self.entry_id.partition("-")[0]) / 1000

    @property
    def ended(self) -> float:
        """When a trajectory began to wait for its rewards, by the same clock; `added` of one that
        needs none.
        """
        return float(self.fields.get(b"ended", self.added))


@dataclass(frozen=True)
class DeadLetter:
    """An episode that was given up."""

    spec: rollout_pb2.EpisodeSpec
    stage: str
    """The boundary at which it failed: env or reward."""
    cause: str
    deliveries: int


@dataclass(frozen=True)
class StreamState:
    """A stream at a glance."""

    stream: str
    length: int
    pending: int
    lag: int | None
    consumers: int


async def check_queue(config: QueueConfig) -> None:
    """Raises QueueError at once where there is no queue now."""
    async with RolloutQueue(config, retries=0):
        pass


class RolloutQueue:
    """The queue as its three users see it. Use as an async context manager.

    Raises:
        QueueError: Redis can't be reached, refuses the password, or evicts keys.
    """

    def __init__(self, config: QueueConfig, *, retries: int = 8) -> None:
        """retries: of whatever finds no connection, some 15 seconds in all."""
        self._config = config
        self._redis = open_redis(config, retries)
        self._blobs: BlobStore = open_blobs(config.blobs, self._redis, f"{_PREFIX}blob:")
        self._held: dict[tuple[str, str], Delivery[Any]] = {}
        self._unread: set[str] = set()
        self._heartbeat: asyncio.Task[None] | None = None
        self._groups: set[tuple[str, str]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self._redis.ping()
            policy = await self._redis.config_get("maxmemory-policy")
        except ResponseError:
            policy = {}  # Managed services refuse CONFIG.
        except RedisError as error:
            await self._redis.aclose()
            raise QueueError(
                f"no queue at {self._config.url}: {str(error).rstrip('.')}; "
                f"`{invocation()} up CONFIG` starts one with everything else, queue.url names "
                "one that runs"
            ) from error
        if policy.get("maxmemory-policy", "noeviction") != "noeviction":
            await self._redis.aclose()
            raise QueueError(
                "the queue's Redis evicts keys, so trajectories could vanish: "
                "set maxmemory-policy to noeviction"
            )
        self._heartbeat = asyncio.create_task(self._keep_entries())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._heartbeat:
            self._heartbeat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heartbeat
        await self._redis.aclose()

    # ---- env workers -------------------------------------------------------------------------

    async def next_episode(
        self, worker: str, block_seconds: float = 5.0
    ) -> Delivery[rollout_pb2.EpisodeSpec] | None:
        """The next order, first of all one that a dead worker left behind."""
        entries = await self._read(EPISODES, ENV_GROUP, worker, 1, block_seconds)
        for entry in entries:
            try:
                spec = rollout_pb2.EpisodeSpec.FromString(entry.fields[b"spec"])
            except (DecodeError, KeyError) as error:
                unreadable = rollout_pb2.EpisodeSpec(episode_id=entry.entry_id)
                await self._bury(entry, "env", unreadable, f"not an EpisodeSpec: {error!r}")
                continue
            if not await self._bury_if_worn_out(entry, "env", spec):
                return self._hold(entry, spec)
        return None

    async def finish_episode(
        self, delivery: Delivery[rollout_pb2.EpisodeSpec], trajectory: rollout_pb2.Trajectory
    ) -> bool:
        """Passes the trajectory on to the reward servers, or straight to whoever ordered it where
        it needs no rewards. False: another worker was faster.
        """
        spec = delivery.message
        await self._blobs.put(spec.episode_id, trajectory.SerializeToString())
        fields = {"id": spec.episode_id, "failures": 0}
        if spec.unscored:
            scores = {"scores": b""}
            return await self._move(delivery, scored_stream(spec.run_id), fields | scores)
        return await self._move(delivery, TRAJECTORIES, fields)

    async def fail_episode(
        self, delivery: Delivery[rollout_pb2.EpisodeSpec], cause: str, *, final: bool = False
    ) -> None:
        """Records a failed try.

        The episode goes back to the stream, or to the dead letters when `final` or when its
        deliveries are used up.
        """
        if final or delivery.deliveries >= self._config.max_deliveries:
            await self._bury(delivery, "env", delivery.message, cause)
        else:
            await self._return(delivery, failures=delivery.deliveries)

    async def release_episode(self, delivery: Delivery[rollout_pb2.EpisodeSpec]) -> None:
        """Hands the order back unharmed: the worker drains, or its policy is away."""
        await self._return(delivery, failures=delivery.deliveries - 1)

    # ---- reward servers ----------------------------------------------------------------------

    async def next_trajectories(
        self, worker: str, count: int, block_seconds: float = 5.0
    ) -> list[Delivery[rollout_pb2.Trajectory]]:
        """Up to `count` trajectories that wait for their rewards."""
        found = []
        for entry in await self._read(TRAJECTORIES, REWARD_GROUP, worker, count, block_seconds):
            trajectory = await self._load_trajectory(entry)
            if not await self._bury_if_worn_out(entry, "reward", trajectory.spec):
                found.append(self._hold(entry, trajectory))
        return found

    async def finish_scoring(
        self, delivery: Delivery[rollout_pb2.Trajectory], scores: rollout_pb2.RewardScores
    ) -> bool:
        """Passes the trajectory on to its trainer; the blob stays where it is."""
        spec = delivery.message.spec
        fields = {
            "id": spec.episode_id,
            "scores": scores.SerializeToString(),
            "ended": delivery.added,
            "failures": 0,
        }
        return await self._move(delivery, scored_stream(spec.run_id), fields)

    async def fail_scoring(self, delivery: Delivery[rollout_pb2.Trajectory], cause: str) -> None:
        """Records a failed try, as `fail_episode` does."""
        if delivery.deliveries >= self._config.max_deliveries:
            await self._bury(delivery, "reward", delivery.message.spec, cause)
        else:
            await self._return(delivery, failures=delivery.deliveries)

    async def release_trajectory(self, delivery: Delivery[rollout_pb2.Trajectory]) -> None:
        """Hands the trajectory back unharmed, to be scored by another server."""
        await self._return(delivery, failures=delivery.deliveries - 1)

    # ---- trainer -----------------------------------------------------------------------------

    async def issue(self, specs: Iterable[rollout_pb2.EpisodeSpec]) -> int:
        """Orders episodes; those that are outstanding already are left alone.

        Returns:
            How many were new.
        """
        issued = 0
        for spec in specs:
            await self._ensure_group(EPISODES, ENV_GROUP)
            keys = [_outstanding_key(spec.run_id), EPISODES]
            values = [spec.episode_id, "spec", spec.SerializeToString(), "failures", 0]
            issued += await self._script(_ISSUE, keys, values)
        return issued

    async def next_scored(
        self, run_id: str, count: int, block_seconds: float = 5.0
    ) -> list[Delivery[rollout_pb2.Trajectory]]:
        """Scored trajectories of this run. A trainer that comes back is first given again what it
        had received and not acknowledged.

        They stay pending until `acknowledge`.
        """
        stream = scored_stream(run_id)
        consumer = "trainer"
        await self._ensure_group(stream, TRAINER_GROUP)
        if stream not in self._unread:
            self._unread.add(stream)
            again = await self._xreadgroup(stream, TRAINER_GROUP, consumer, None, None, "0")
            if again:
                return [await self._scored(entry) for entry in again]
        block = round(block_seconds * 1000)
        fresh = await self._xreadgroup(stream, TRAINER_GROUP, consumer, count, block, ">")
        return [await self._scored(entry) for entry in fresh]

    async def acknowledge(
        self, run_id: str, deliveries: Sequence[Delivery[rollout_pb2.Trajectory]]
    ) -> None:
        """Forgets trajectories for good: what was learned from them is durable."""
        if not deliveries:
            return
        stream = scored_stream(run_id)
        entries = [delivery.entry_id for delivery in deliveries]
        episodes = [delivery.message.spec.episode_id for delivery in deliveries]
        async with self._redis.pipeline(transaction=True) as together:
            together.xack(stream, TRAINER_GROUP, *entries)
            together.xdel(stream, *entries)
            together.srem(_outstanding_key(run_id), *episodes)
            await together.execute()
        await self._blobs.delete(episodes)

    async def abandon(self, run_id: str, episode_ids: Sequence[str]) -> None:
        """Stops counting dead-lettered episodes as outstanding."""
        if episode_ids:
            await self._redis.srem(_outstanding_key(run_id), *episode_ids)
            await self._blobs.delete(list(episode_ids))

    async def outstanding(self, run_id: str) -> set[str]:
        """Ids of the episodes that were ordered and not yet learned from."""
        members = await self._redis.smembers(_outstanding_key(run_id))
        return {member.decode() for member in members}

    async def dead_letters(self, run_id: str | None = None) -> list[DeadLetter]:
        """What was given up, oldest first: of one run, or of all."""
        letters = []
        for _, fields in await self._redis.xrange(DEAD):
            spec = rollout_pb2.EpisodeSpec.FromString(fields[b"spec"])
            if run_id in (None, spec.run_id):
                letters.append(
                    DeadLetter(
                        spec=spec,
                        stage=fields[b"stage"].decode(),
                        cause=fields[b"cause"].decode(),
                        deliveries=int(fields[b"deliveries"]),
                    )
                )
        return letters

    async def dead_count(self) -> int:
        """How many episodes of all runs were given up."""
        return int(await self._redis.xlen(DEAD))

    async def states(self) -> list[StreamState]:
        """Every stream's length, pending entries and lag (None: unknown to Redis). A stream that
        nobody has read from yet has no consumers.
        """
        streams = [EPISODES, TRAJECTORIES]
        streams += sorted([key.decode() async for key in self._redis.scan_iter(scored_stream("*"))])
        states = []
        for stream in streams:
            length, groups = await self._redis.xlen(stream), []
            with contextlib.suppress(ResponseError):  # There is no such stream yet.
                groups = await self._redis.xinfo_groups(stream)
            if length and not groups:
                groups = [{"pending": 0, "lag": length, "consumers": 0}]
            states += [
                StreamState(
                    stream=stream.removeprefix(_PREFIX),
                    length=length,
                    pending=group["pending"],
                    lag=group["lag"],
                    consumers=group["consumers"],
                )
                for group in groups
            ]
        return states

    # ---- entries -----------------------------------------------------------------------------

    async def _read(
        self, stream: str, group: str, consumer: str, count: int, block_seconds: float
    ) -> list[Delivery[Message]]:
        """Left-behind entries first, then new ones."""
        await self._ensure_group(stream, group)
        idle = round(self._config.claim_after_seconds * 1000)
        _, claimed, *_ = await self._redis.xautoclaim(stream, group, consumer, idle, count=count)
        if not claimed:
            block = max(1, round(block_seconds * 1000))
            return await self._xreadgroup(stream, group, consumer, count, block, ">")
        entries = []
        for entry_id, fields in claimed:
            pending = await self._redis.xpending_range(stream, group, entry_id, entry_id, 1)
            times = pending[0]["times_delivered"] if pending else 1
            entries.append(_entry(stream, group, consumer, entry_id, fields, times))
        return entries

    async def _xreadgroup(
        self,
        stream: str,
        group: str,
        consumer: str,
        count: int | None,
        block: int | None,
        start: str,
    ) -> list[Delivery[Message]]:
        answer = await self._redis.xreadgroup(group, consumer, {stream: start}, count, block)
        return [
            _entry(stream, group, consumer, entry_id, fields, 1)
            for _, entries in answer or []
            for entry_id, fields in entries
            if fields
        ]

    async def _load_trajectory(self, entry: Delivery[Message]) -> rollout_pb2.Trajectory:
        episode_id = entry.fields[b"id"].decode()
        payload = await self._blobs.get(episode_id)
        if payload is None:
            raise QueueError(
                f"trajectory {episode_id} is in the queue, but not in the blob store "
                f"({self._config.blobs}): all services must share one store"
            )
        return rollout_pb2.Trajectory.FromString(payload)

    async def _scored(self, entry: Delivery[Message]) -> Delivery[rollout_pb2.Trajectory]:
        trajectory = await self._load_trajectory(entry)
        trajectory.scores.ParseFromString(entry.fields[b"scores"])
        # Not held: one consumer reads this stream, and it acknowledges after a whole iteration.
        return _with_message(entry, trajectory)

    def _hold(self, entry: Delivery[Message], message: M) -> Delivery[M]:
        delivery = _with_message(entry, message)
        self._held[entry.stream, entry.entry_id] = delivery
        return delivery

    async def _keep_entries(self) -> None:
        """Tells Redis, three times within the take-over time, that held entries are in work."""
        while True:
            await asyncio.sleep(self._config.claim_after_seconds / 3)
            for held in list(self._held.values()):
                with contextlib.suppress(RedisError):  # The next beat tries again.
                    await self._redis.xclaim(
                        held.stream,
                        held.group,
                        held.consumer,
                        min_idle_time=0,
                        message_ids=[held.entry_id],
                        justid=True,
                    )

    async def _move(self, delivery: Delivery[Any], target: str, fields: dict[str, Any]) -> bool:
        flat = [part for pair in fields.items() for part in pair]
        keys = [delivery.stream, target]
        moved = await self._script(_MOVE, keys, [delivery.group, delivery.entry_id, *flat])
        self._held.pop((delivery.stream, delivery.entry_id), None)
        return bool(moved)

    async def _return(self, delivery: Delivery[Any], failures: int) -> None:
        kept = {k.decode(): v for k, v in delivery.fields.items() if k != b"failures"}
        await self._move(delivery, delivery.stream, {**kept, "failures": failures})

    async def _bury(
        self, delivery: Delivery[Any], stage: str, spec: rollout_pb2.EpisodeSpec, cause: str
    ) -> None:
        letter = {
            "spec": spec.SerializeToString(),
            "stage": stage,
            "cause": cause,
            "deliveries": delivery.deliveries,
        }
        await self._move(delivery, DEAD, letter)

    async def _bury_if_worn_out(
        self, entry: Delivery[Message], stage: str, spec: rollout_pb2.EpisodeSpec
    ) -> bool:
        if entry.deliveries <= self._config.max_deliveries:
            return False
        cause = f"its worker died or hung in each of {entry.deliveries - 1} tries"
        await self._bury(entry, stage, spec, cause)
        return True

    async def _ensure_group(self, stream: str, group: str) -> None:
        if (stream, group) in self._groups:
            return
        try:
            await self._redis.xgroup_create(stream, group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._groups.add((stream, group))

    async def _script(self, script: str, keys: list[str], values: list[Any]) -> int:
        return int(await self._redis.eval(script, len(keys), *keys, *values))


def _entry(
    stream: str,
    group: str,
    consumer: str,
    entry_id: bytes,
    fields: dict[bytes, bytes],
    times_delivered: int,
) -> Delivery[Message]:
    deliveries = int(fields.get(b"failures", b"0")) + times_delivered
    empty = rollout_pb2.EpisodeSpec()
    return Delivery(entry_id.decode(), stream, group, consumer, empty, deliveries, fields)


def _with_message(entry: Delivery[Message], message: M) -> Delivery[M]:
    return Delivery(
        entry.entry_id,
        entry.stream,
        entry.group,
        entry.consumer,
        message,
        entry.deliveries,
        entry.fields,
    )
