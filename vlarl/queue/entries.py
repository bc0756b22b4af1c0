"""The entries of the queue's streams: how they are read, held, moved on and forgotten.

An entry's life: *added* to a stream, *delivered* to one consumer of the stream's group, then either
moved to the next stream, handed back, or (after too many deliveries) moved to the dead letters.
Each of these is one Lua script, which does nothing where the entry is pending no more: an episode
that two workers finished goes on once. A consumer tells Redis that it lives by claiming its own
entries again; those that stay idle for `claim_after_seconds` are taken over, and are then no longer
the first one's to fail or to hand back.

A move that stores a trajectory in Redis stores it in the same script. So there are no bytes but
those of entries, and each entry names its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from google.protobuf.message import Message
from redis.exceptions import RedisError, ResponseError

from vlarl.config import QueueConfig
from vlarl.rollout.v1 import rollout_pb2

# One hash tag: all keys live in one slot of a Redis Cluster, as the scripts need.
PREFIX = "{vlarl}:"

# Takes an entry out of its stream and puts another one into the target.
# KEYS: source stream, target stream, outstanding episodes, and the key of the trajectory if Redis
# has it. ARGV: group, entry, the consumer that must hold it (empty: whoever does), the episode that
# must be outstanding (empty: whatever it is), what becomes of the trajectory, the trajectory, then
# the new entry's fields and values. Answers 0 where the entry is gone or somebody else's, and where
# nobody wants its episode, which ends it.
_MOVE = """
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if held.err or #held == 0 then return 0 end
if ARGV[3] ~= '' and held[1][2] ~= ARGV[3] then return 0 end
local wanted = ARGV[4] == '' or redis.call('SISMEMBER', KEYS[3], ARGV[4]) == 1
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
if KEYS[4] and (ARGV[5] == 'delete' or not wanted) then redis.call('DEL', KEYS[4]) end
if not wanted then return 0 end
if KEYS[4] and ARGV[5] == 'set' then redis.call('SET', KEYS[4], ARGV[6]) end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 7))
return 1
"""

# KEYS: stream, outstanding episodes, then the blobs' keys. ARGV: group, then each entry and its
# episode. An episode that was ordered again since stays outstanding: its old entry is gone.
_FORGET = """
for i = 2, #ARGV, 2 do
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('SREM', KEYS[2], ARGV[i + 1])
  end
end
for i = 3, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
"""

# KEYS: stream. ARGV: group, consumer, entry. Answers 0 where another consumer has taken it over.
_KEEP = """
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if held.err or #held == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return 1
"""

# KEYS: outstanding episodes, episodes stream. ARGV: episode, then the entry's fields and values.
_ISSUE = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
return 1
"""

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)
T = TypeVar("T")


def outstanding_key(run_id: str) -> str:
    """The set of the run's episodes that were ordered and not yet learned from."""
    return f"{PREFIX}outstanding:{run_id}"


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

    @property
    def blobs(self) -> list[str]:
        """The name of its trajectory's blob; none of an order, which has no trajectory yet."""
        # Version 0.1.0 named a blob after its episode.
        name = self.fields.get(b"blob", self.fields.get(b"id"))
        return [] if name is None else [name.decode()]

    def carrying(self, message: N) -> Delivery[N]:
        """The same entry with its message read."""
        return Delivery(
            self.entry_id,
            self.stream,
            self.group,
            self.consumer,
            message,
            self.deliveries,
            self.fields,
        )


class Entries:
    """The streams of one Redis, as one process uses them."""

    def __init__(self, redis: Any, config: QueueConfig) -> None:  # noqa: ANN401 - see `open_redis`
        self._redis = redis
        self._claim_after = config.claim_after_seconds
        self._held: dict[tuple[str, str], Delivery[Any]] = {}

    async def issue(self, spec: rollout_pb2.EpisodeSpec, stream: str) -> bool:
        """Adds an order, unless its episode is outstanding already."""
        keys = [outstanding_key(spec.run_id), stream]
        values = [spec.episode_id, "spec", spec.SerializeToString(), "failures", 0]
        return bool(await self._script(_ISSUE, keys, values))

    async def read(
        self, stream: str, group: str, consumer: str, count: int, block_seconds: float
    ) -> list[Delivery[Message]]:
        """Left-behind entries first, then new ones."""
        idle = round(self._claim_after * 1000)
        _, claimed, *_ = await self._in_group(
            stream,
            group,
            lambda: self._redis.xautoclaim(stream, group, consumer, idle, count=count),
        )
        if not claimed:
            return await self.read_new(stream, group, consumer, count, block_seconds)
        entries = []
        for entry_id, fields in claimed:
            pending = await self._redis.xpending_range(stream, group, entry_id, entry_id, 1)
            times = pending[0]["times_delivered"] if pending else 1
            entries.append(_entry(stream, group, consumer, entry_id, fields, times))
        return entries

    async def read_new(
        self, stream: str, group: str, consumer: str, count: int, block_seconds: float
    ) -> list[Delivery[Message]]:
        """Entries that nobody has had."""
        block = max(1, round(block_seconds * 1000))
        return await self._xreadgroup(stream, group, consumer, ">", count, block)

    async def read_again(self, stream: str, group: str, consumer: str) -> list[Delivery[Message]]:
        """What the consumer has had and not moved or forgotten."""
        return await self._xreadgroup(stream, group, consumer, "0", None, None)

    async def _xreadgroup(
        self,
        stream: str,
        group: str,
        consumer: str,
        start: str,
        count: int | None,
        block: int | None,
    ) -> list[Delivery[Message]]:
        answer = await self._in_group(
            stream,
            group,
            lambda: self._redis.xreadgroup(group, consumer, {stream: start}, count, block),
        )
        return [
            _entry(stream, group, consumer, entry_id, fields, 1)
            for _, entries in answer or []
            for entry_id, fields in entries
            if fields
        ]

    async def _in_group(self, stream: str, group: str, command: Callable[[], Awaitable[T]]) -> T:
        """The command's answer. Where there is no such group, nobody has read from the stream yet,
        or the queue was emptied since: it is made.
        """
        while True:
            try:
                return await command()
            except ResponseError as error:
                # The second is what Redis 7.0 says to who waits for entries.
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
            await self.ensure_group(stream, group)

    async def ensure_group(self, stream: str, group: str) -> None:
        """Makes the group, and the stream, unless they exist."""
        try:
            await self._redis.xgroup_create(stream, group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def hold(self, entry: Delivery[Message], message: M) -> Delivery[M]:
        """Keeps the entry from being taken over until it is moved."""
        delivery = entry.carrying(message)
        self._held[entry.stream, entry.entry_id] = delivery
        return delivery

    async def keep(self) -> None:
        """Tells Redis, three times within the take-over time, that held entries are in work."""
        while True:
            await asyncio.sleep(self._claim_after / 3)
            for key, held in list(self._held.items()):
                values = [held.group, held.consumer, held.entry_id]
                with contextlib.suppress(RedisError):  # The next beat tries again.
                    if not await self._script(_KEEP, [held.stream], values):
                        self._held.pop(key, None)

    async def move(
        self,
        delivery: Delivery[Any],
        spec: rollout_pb2.EpisodeSpec | None,
        target: str,
        fields: Mapping[str, Any],
        *,
        by_holder: bool = False,
        blobs: Sequence[str] = (),
        then: Literal["keep", "set", "delete"] = "keep",
        payload: bytes = b"",
    ) -> bool:
        """Puts an entry with these fields into the target stream, in this one's place.

        Args:
            delivery: the entry.
            spec: its episode, which must be outstanding, or the entry is dropped; None: unknown.
            target: a stream.
            fields: of the new entry.
            by_holder: whether nobody may have taken the entry over.
            blobs: the key of its trajectory, if Redis has it.
            then: what becomes of the trajectory. It goes with an entry that is dropped.
            payload: the trajectory, to be set.

        Returns:
            Whether it is moved now. False: it had been moved, taken over or dropped before.
        """
        flat = [part for pair in fields.items() for part in pair]
        run_id, episode = (spec.run_id, spec.episode_id) if spec is not None else ("", "")
        holder = delivery.consumer if by_holder else ""
        keys = [delivery.stream, target, outstanding_key(run_id), *blobs]
        values = [delivery.group, delivery.entry_id, holder, episode, then, payload, *flat]
        moved = await self._script(_MOVE, keys, values)
        self._held.pop((delivery.stream, delivery.entry_id), None)
        return bool(moved)

    async def forget(
        self,
        run_id: str,
        stream: str,
        group: str,
        episodes: Mapping[str, str],
        blobs: Sequence[str] = (),
    ) -> None:
        """Removes entries for good, and their episodes from the outstanding ones.

        Args:
            run_id: whose they are.
            stream: where they lie.
            group: the stream's.
            episodes: the episode of each entry.
            blobs: keys that are deleted with them.
        """
        flat = [part for pair in episodes.items() for part in pair]
        await self._script(_FORGET, [stream, outstanding_key(run_id), *blobs], [group, *flat])

    async def pending(self, entry: Delivery[Any]) -> bool:
        """Whether the entry still waits to be moved or forgotten."""
        one = (entry.entry_id, entry.entry_id, 1)
        try:
            return bool(await self._redis.xpending_range(entry.stream, entry.group, *one))
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # the queue was emptied
                raise
            return False

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
