"""The rollout queue: episodes out, trajectories back, on Redis Streams.

    trainer --episodes--> env workers --trajectories--> reward servers --scored:RUN--> trainer
                                      --unscored ones------------------------------>

Nothing is bounded by MAXLEN, which drops entries that are pending. The bound is the set of
*outstanding* episodes: ordered, and not yet learned from. An entry of any other episode is dropped
wherever it turns up. Reads happen at least once, moves exactly once, and the trainer acknowledges a
trajectory when the checkpoint that learned from it is durable.

A queue that is emptied under its users (FLUSHALL, a lost volume) loses what was in it and nothing
more: reading makes the streams again, and the trainer orders again what is no longer outstanding.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError, Message
from redis.exceptions import RedisError, ResponseError

from vlarl.config import QueueConfig
from vlarl.errors import FatalError
from vlarl.invocation import invocation
from vlarl.queue.blobs import BlobStore, open_blobs
from vlarl.queue.connection import open_redis
from vlarl.queue.entries import PREFIX, Delivery, Entries, outstanding_key
from vlarl.rollout.v1 import rollout_pb2

_LOG = logging.getLogger(__name__)

EPISODES = f"{PREFIX}episodes"
TRAJECTORIES = f"{PREFIX}trajectories"
DEAD = f"{PREFIX}dead"
ENV_GROUP, REWARD_GROUP, TRAINER_GROUP = "env", "reward", "trainer"


Keep = Callable[[Delivery[rollout_pb2.Trajectory]], Delivery[rollout_pb2.Trajectory]]


class QueueError(FatalError):
    """The queue can't be reached or refuses work; the message says what to do."""


def scored_stream(run_id: str) -> str:
    """The stream from which the trainer of this run learns."""
    return f"{PREFIX}scored:{run_id}"


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
        QueueError: Redis can't be reached, refuses the password, or evicts keys; at the end of the
            block, that it failed there.
    """

    def __init__(self, config: QueueConfig, *, retries: int = 8) -> None:
        """retries: of whatever finds no connection, some 15 seconds in all."""
        self._config = config
        self._redis = open_redis(config, retries)
        self._blobs: BlobStore = open_blobs(config.blobs, self._redis, PREFIX)
        self._entries = Entries(self._redis, config)
        self._read_again: set[str] = set()
        self._heartbeat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        policy = {}
        try:
            await self._redis.ping()
            await self._blobs.agree()
            with contextlib.suppress(ResponseError):  # Managed services refuse CONFIG.
                policy = await self._redis.config_get("maxmemory-policy")
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
        self._heartbeat = asyncio.create_task(self._entries.keep())
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
        if isinstance(error, RedisError):
            raise QueueError(
                f"the queue at {self._config.url} failed: {str(error).rstrip('.')}; nothing that "
                "it had taken is lost: see to it, then start this again"
            ) from error

    # ---- env workers -------------------------------------------------------------------------

    async def next_episode(
        self, worker: str, block_seconds: float = 5.0
    ) -> Delivery[rollout_pb2.EpisodeSpec] | None:
        """The next order, first of all one that a dead worker left behind."""
        for entry in await self._entries.read(EPISODES, ENV_GROUP, worker, 1, block_seconds):
            try:
                spec = rollout_pb2.EpisodeSpec.FromString(entry.fields[b"spec"])
            except (DecodeError, KeyError) as error:
                unreadable = rollout_pb2.EpisodeSpec(episode_id=entry.entry_id)
                letter = _letter(entry, "env", unreadable, f"not an EpisodeSpec: {error!r}")
                await self._entries.move(entry, None, DEAD, letter, by_holder=True)
                continue
            if not await self._wanted(entry, spec.run_id, spec.episode_id):
                continue
            if not await self._worn_out(entry, "env", spec):
                return self._entries.hold(entry, spec)
        return None

    async def finish_episode(
        self, delivery: Delivery[rollout_pb2.EpisodeSpec], trajectory: rollout_pb2.Trajectory
    ) -> bool:
        """Passes the trajectory on to the reward servers, or straight to whoever ordered it where
        it needs no rewards. False: another worker was faster, or nobody wants it any more.
        """
        spec = delivery.message
        payload = trajectory.SerializeToString()
        blob = await self._blobs.new_name(spec)
        await self._blobs.put(blob, payload)
        keys = self._keys([blob])
        fields = {
            "id": spec.episode_id,
            "run": spec.run_id,
            "blob": blob,
            "store": self._config.blobs,
            "failures": 0,
        }
        if spec.unscored:
            target = scored_stream(spec.run_id)
            fields["scores"] = b""
        else:
            target = TRAJECTORIES
            fields["outline"] = _outline(trajectory).SerializeToString()
        moved = await self._entries.move(
            delivery,
            spec,
            target,
            fields,
            blobs=keys,
            then="set",
            payload=payload if keys else b"",  # or else the store has it already
        )
        if not moved:
            # Not the blob by its name: the script may be answering a second time, after a first
            # answer that was lost, and then its entry goes on.
            await self._clear(spec.run_id)
        return moved

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
            await self._return(delivery, delivery.message, failures=delivery.deliveries)

    async def release_episode(self, delivery: Delivery[rollout_pb2.EpisodeSpec]) -> None:
        """Hands the order back unharmed: the worker drains, or its policy is away."""
        await self._return(delivery, delivery.message, failures=delivery.deliveries - 1)

    # ---- reward servers ----------------------------------------------------------------------

    async def next_trajectories(
        self, worker: str, count: int, block_seconds: float = 5.0, *, frames: bool = True
    ) -> list[Delivery[rollout_pb2.Trajectory]]:
        """Up to `count` trajectories that wait for their rewards.

        frames: whether they are looked at. Where they aren't, they stay where they lie, and the
            trajectories come without.
        """
        read = await self._entries.read(TRAJECTORIES, REWARD_GROUP, worker, count, block_seconds)
        found = []
        for entry in read:
            # Version 0.1.0 sent no outline.
            outlined = not frames and b"outline" in entry.fields
            trajectory = await (self._read_outline(entry) if outlined else self._load(entry))
            if trajectory is None:
                continue
            if not await self._worn_out(entry, "reward", trajectory.spec):
                found.append(self._entries.hold(entry, trajectory))
        return found

    async def finish_scoring(
        self, delivery: Delivery[rollout_pb2.Trajectory], scores: rollout_pb2.RewardScores
    ) -> bool:
        """Passes the trajectory on to its trainer; the blob stays where it is. False: as of
        `finish_episode`.
        """
        spec = delivery.message.spec
        (blob,) = delivery.blobs
        fields = {
            "id": spec.episode_id,
            "run": spec.run_id,
            "blob": blob,
            "store": delivery.fields.get(b"store", b""),
            "scores": scores.SerializeToString(),
            "ended": delivery.added,
            "failures": 0,
        }
        keys = self._keys([blob])
        target = scored_stream(spec.run_id)
        return await self._entries.move(delivery, spec, target, fields, blobs=keys)

    async def fail_scoring(self, delivery: Delivery[rollout_pb2.Trajectory], cause: str) -> None:
        """Records a failed try, as `fail_episode` does."""
        if delivery.deliveries >= self._config.max_deliveries:
            await self._bury(delivery, "reward", delivery.message.spec, cause)
        else:
            await self._return(delivery, delivery.message.spec, failures=delivery.deliveries)

    async def release_trajectory(self, delivery: Delivery[rollout_pb2.Trajectory]) -> None:
        """Hands the trajectory back unharmed, to be scored by another server."""
        await self._return(delivery, delivery.message.spec, failures=delivery.deliveries - 1)

    # ---- trainer -----------------------------------------------------------------------------

    async def issue(self, specs: Iterable[rollout_pb2.EpisodeSpec]) -> int:
        """Orders episodes; those that are outstanding already are left alone.

        Returns:
            How many were new.
        """
        await self._blobs.agree()
        await self._entries.ensure_group(EPISODES, ENV_GROUP)
        return sum([await self._entries.issue(spec, EPISODES) for spec in specs])

    async def next_scored(
        self, run_id: str, count: int, block_seconds: float = 5.0, keep: Keep | None = None
    ) -> list[Delivery[rollout_pb2.Trajectory]]:
        """Scored trajectories of this run. A trainer that comes back is first given again what it
        had received and not acknowledged.

        They stay pending until `acknowledge`.

        keep: makes of each what is to be kept of it, before the next one is read; none: all is.
        """
        reader = scored_stream(run_id), TRAINER_GROUP, "trainer"
        entries = []
        if run_id not in self._read_again:
            self._read_again.add(run_id)
            await self._clear(run_id)  # What a trainer was killed before it removed.
            entries = await self._entries.read_again(*reader)
        if not entries:
            entries = await self._entries.read_new(*reader, count, block_seconds)
        found = []
        for entry in entries:
            trajectory = await self._load(entry)
            if trajectory is not None:
                trajectory.scores.ParseFromString(entry.fields[b"scores"])
                # Not held: one consumer reads this stream, and it acknowledges after a whole
                # iteration.
                delivery = entry.carrying(trajectory)
                found.append(delivery if keep is None else keep(delivery))
        return found

    async def acknowledge(
        self, run_id: str, deliveries: Sequence[Delivery[rollout_pb2.Trajectory]]
    ) -> None:
        """Forgets trajectories for good: what was learned from them is durable. May be repeated."""
        if not deliveries:
            return
        episodes = {one.entry_id: one.message.spec.episode_id for one in deliveries}
        blobs = [blob for delivery in deliveries for blob in delivery.blobs]
        keys = self._keys(blobs)
        await self._entries.forget(run_id, scored_stream(run_id), TRAINER_GROUP, episodes, keys)
        await self._clear(run_id, blobs)

    async def abandon(self, run_id: str, episode_ids: Sequence[str]) -> None:
        """Gives episodes up for good. One that is still in work is dropped when it ends."""
        if episode_ids:
            await self._redis.srem(outstanding_key(run_id), *episode_ids)
            await self._clear(run_id)

    async def outstanding(self, run_id: str) -> set[str]:
        """Ids of the episodes that were ordered and not yet learned from."""
        members = await self._redis.smembers(outstanding_key(run_id))
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
                    stream=stream.removeprefix(PREFIX),
                    length=length,
                    pending=group["pending"],
                    lag=group["lag"],
                    consumers=group["consumers"],
                )
                for group in groups
            ]
        return states

    # ---- entries -----------------------------------------------------------------------------

    async def _read_outline(self, entry: Delivery[Message]) -> rollout_pb2.Trajectory | None:
        """The entry's trajectory without its frames; None where nobody wants it any more. Whether
        its blob is still there, the trainer finds out.
        """
        trajectory = rollout_pb2.Trajectory.FromString(entry.fields[b"outline"])
        spec = trajectory.spec
        return trajectory if await self._wanted(entry, spec.run_id, spec.episode_id) else None

    async def _load(self, entry: Delivery[Message]) -> rollout_pb2.Trajectory | None:
        """The entry's trajectory; None where it goes no further.

        One whose blob is gone from the store that it was put into is forgotten, so that whoever
        waits for its episode orders it again.

        Raises:
            QueueError: it was put into another store than this process looks into.
        """
        (blob,) = entry.blobs
        payload = await self._blobs.get(blob)
        trajectory = rollout_pb2.Trajectory.FromString(payload or b"")
        # Version 0.1.0 left the run to the trajectory.
        run_id = entry.fields.get(b"run", trajectory.spec.run_id.encode()).decode()
        # Asked after the blob, which goes when its episode is outstanding no more.
        if not await self._wanted(entry, run_id, entry.fields[b"id"].decode()):
            return None
        if payload is not None:
            return trajectory
        # Whoever had the entry before may only have been slow, and have moved it meanwhile.
        if not await self._entries.pending(entry):
            return None
        episode, ours = entry.fields[b"id"].decode(), self._config.blobs
        # Version 0.1.0 left the store out.
        store = entry.fields.get(b"store", b"").decode() or ours
        if store != ours:
            raise QueueError(
                f"trajectory {episode} is in the queue, and its blob in {store}, not in {ours}: "
                f"all services must share one store; go on with queue.blobs = {store}"
            )
        _LOG.warning("trajectory %s is in the queue, but gone from %s", episode, store)
        await self._forget(entry, run_id, episode)
        return None

    async def _wanted(self, entry: Delivery[Message], run_id: str, episode_id: str) -> bool:
        """Whether its episode is outstanding. The entry of one that isn't is dropped."""
        if await self._redis.sismember(outstanding_key(run_id), episode_id):
            return True
        await self._forget(entry, run_id)
        return False

    async def _forget(self, entry: Delivery[Message], run_id: str, episode_id: str = "") -> None:
        """Removes an entry with its blob, and its episode from the outstanding ones, if given."""
        gone, keys = {entry.entry_id: episode_id}, self._keys(entry.blobs)
        await self._entries.forget(run_id, entry.stream, entry.group, gone, keys)

    async def _return(
        self, delivery: Delivery[Any], spec: rollout_pb2.EpisodeSpec, failures: int
    ) -> None:
        kept = {k.decode(): v for k, v in delivery.fields.items() if k != b"failures"}
        fields = {**kept, "failures": failures}
        keys = self._keys(delivery.blobs)
        await self._entries.move(
            delivery, spec, delivery.stream, fields, by_holder=True, blobs=keys
        )

    async def _bury(
        self, delivery: Delivery[Any], stage: str, spec: rollout_pb2.EpisodeSpec, cause: str
    ) -> None:
        letter = _letter(delivery, stage, spec, cause)
        keys = self._keys(delivery.blobs)
        await self._entries.move(
            delivery, spec, DEAD, letter, by_holder=True, blobs=keys, then="delete"
        )

    async def _worn_out(
        self, entry: Delivery[Message], stage: str, spec: rollout_pb2.EpisodeSpec
    ) -> bool:
        """Whether it has been delivered too often. It is buried then."""
        if entry.deliveries <= self._config.max_deliveries:
            return False
        cause = f"its worker died or hung in each of {entry.deliveries - 1} tries"
        await self._bury(entry, stage, spec, cause)
        return True

    def _keys(self, blobs: Sequence[str]) -> list[str]:
        """The Redis keys of these blobs; none where they lie elsewhere."""
        prefix = self._blobs.key_prefix
        return [] if prefix is None else [prefix + blob for blob in blobs]

    async def _clear(self, run_id: str, blobs: Sequence[str] = ()) -> None:
        """Removes these blobs and those that no outstanding episode has."""
        await self._blobs.clear(run_id, blobs, lambda: self.outstanding(run_id))


def _outline(trajectory: rollout_pb2.Trajectory) -> rollout_pb2.Trajectory:
    """The same without its frames: some hundred bytes a step."""
    outline = rollout_pb2.Trajectory()
    outline.CopyFrom(trajectory)
    clear_frames(outline)
    return outline


def clear_frames(trajectory: rollout_pb2.Trajectory) -> None:
    """Takes a trajectory's frames away, of all cameras."""
    trajectory.ClearField("final_image")
    trajectory.ClearField("final_images")
    for step in trajectory.steps:
        step.ClearField("image")
        step.ClearField("images")


def _letter(
    delivery: Delivery[Any], stage: str, spec: rollout_pb2.EpisodeSpec, cause: str
) -> dict[str, Any]:
    return {
        "spec": spec.SerializeToString(),
        "stage": stage,
        "cause": cause,
        "deliveries": delivery.deliveries,
    }
