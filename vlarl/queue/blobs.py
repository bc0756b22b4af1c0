"""Where trajectories lie while a small entry for each travels through the streams.

Redis holds them by default. For long runs, or trajectories with large frames, any fsspec URL does:
a shared volume (file:///mnt/vlarl) or an object store (s3://bucket/prefix).

A blob belongs to one delivery of one episode: no two workers write the same one, and the entry that
goes on names its own. What a slow or dead worker wrote beside it is never read. Redis stores a blob
in the script that moves the entry, so there is no such thing. Elsewhere it is written before, and
removed when its episode is outstanding no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

import fsspec
from redis.asyncio import Redis

from vlarl.rollout.v1 import rollout_pb2

Outstanding = Callable[[], Awaitable[set[str]]]


class BlobStore(Protocol):
    """Bytes by name."""

    key_prefix: str | None
    """Of the Redis keys by which the queue's scripts set and delete the blobs; None: they lie
    elsewhere.
    """

    async def agree(self) -> None:
        """Finds out, or has the queue's other users find out, what names begin with."""

    async def new_name(self, spec: rollout_pb2.EpisodeSpec) -> str:
        """A name for a trajectory of this episode, which no other has."""

    async def put(self, name: str, payload: bytes) -> None:
        """Stores the payload durably before it returns, unless a script is going to."""

    async def get(self, name: str) -> bytes | None:
        """The payload, or None where there is none."""

    async def clear(self, run_id: str, names: Sequence[str], outstanding: Outstanding) -> None:
        """Removes these blobs, and all of the run's whose episode is not outstanding, unless the
        scripts have left none.

        Args:
            run_id: the run.
            names: blobs that nobody will read.
            outstanding: looks the run's outstanding episodes up.
        """


class RedisBlobs:
    """Blobs as plain values in the queue's own Redis, set and deleted by its scripts."""

    def __init__(self, redis: Redis, key_prefix: str) -> None:
        self._redis = redis
        self.key_prefix: str | None = key_prefix

    async def agree(self) -> None:
        pass

    async def new_name(self, spec: rollout_pb2.EpisodeSpec) -> str:
        return f"{spec.episode_id}:{secrets.token_hex(8)}"

    async def put(self, name: str, payload: bytes) -> None:
        pass

    async def get(self, name: str) -> bytes | None:
        return cast("bytes | None", await self._redis.get(f"{self.key_prefix}{name}"))

    async def clear(self, run_id: str, names: Sequence[str], outstanding: Outstanding) -> None:
        pass


class FileBlobs:
    """Blobs as files of a shared folder or an object store.

    A file's name is made of digests, which any file system takes: the queue's own, so that several
    queues may share a folder, then the run's, the episode's, and one more.
    """

    def __init__(self, url: str, redis: Redis, queue_key: str) -> None:
        """queue_key: where the queue's part of the names is written down."""
        self.key_prefix: str | None = None
        self._files, self._root = fsspec.url_to_fs(url, auto_mkdir=True)
        self._redis = redis
        self._queue_key = queue_key
        self._queue = secrets.token_hex(8)
        # An emptied queue may get another name; those who knew it still find its files.
        self._queues: set[str] = set()

    async def agree(self) -> None:
        await self._redis.set(self._queue_key, self._queue, nx=True)
        agreed = cast("bytes | None", await self._redis.get(self._queue_key))
        if agreed is not None:  # or else it was emptied this very moment
            self._queue = agreed.decode()
        self._queues.add(self._queue)

    async def new_name(self, spec: rollout_pb2.EpisodeSpec) -> str:
        await self.agree()
        run, episode = _digest(spec.run_id), _digest(spec.episode_id)
        return f"{self._queue}-{run}-{episode}-{secrets.token_hex(8)}"

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    async def put(self, name: str, payload: bytes) -> None:
        # Written aside and moved into place, so that a reader never sees half a file.
        part = self._path(name) + ".part"
        for last in (False, False, True):
            await asyncio.to_thread(self._files.pipe_file, part, payload)
            try:
                await asyncio.to_thread(self._files.mv, part, self._path(name))
                return
            except FileNotFoundError:
                # A trainer clears what no outstanding episode has, and this one's may just have
                # ended elsewhere. What is written in vain goes with the next clearing.
                if last:
                    raise

    async def get(self, name: str) -> bytes | None:
        try:
            return cast("bytes", await asyncio.to_thread(self._files.cat_file, self._path(name)))
        except FileNotFoundError:
            return None

    async def clear(self, run_id: str, names: Sequence[str], outstanding: Outstanding) -> None:
        await self._delete(names)
        await self.agree()
        ours = tuple(f"{queue}-{_digest(run_id)}-" for queue in self._queues)
        found = [name for name in await asyncio.to_thread(self._list) if name.startswith(ours)]
        # Looked up after the files: who wrote one of them had an order before.
        wanted = {_digest(episode) for episode in await outstanding()}
        await self._delete([name for name in found if name.split("-")[2] not in wanted])

    def _list(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            return [path.rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        except FileNotFoundError:  # Nothing has been written yet.
            return []

    async def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                await asyncio.to_thread(self._files.rm_file, self._path(name))
            except FileNotFoundError:
                continue


def _digest(identifier: str) -> str:
    return hashlib.blake2b(identifier.encode(), digest_size=8).hexdigest()


def open_blobs(location: str, redis: Redis, prefix: str) -> BlobStore:
    """The store that `queue.blobs` names: "redis", or an fsspec URL.

    Args:
        location: see above.
        redis: the queue's.
        prefix: of all its keys.
    """
    if location == "redis":
        return RedisBlobs(redis, f"{prefix}blob:")
    return FileBlobs(location, redis, f"{prefix}blobs-of")
