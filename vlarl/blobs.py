"""Where trajectories lie while a small entry for each travels through the streams.

Redis holds them by default. For long runs, or trajectories with large frames, any fsspec URL does:
a shared volume (file:///mnt/vlarl) or an object store (s3://bucket/prefix).
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import fsspec
from redis.asyncio import Redis


class BlobStore(Protocol):
    """Bytes by key. Writing a key twice, and deleting a missing one, is harmless."""

    async def put(self, key: str, payload: bytes) -> None:
        """Stores the payload durably before it returns."""

    async def get(self, key: str) -> bytes | None:
        """The payload, or None where there is none."""

    async def delete(self, keys: list[str]) -> None:
        """Forgets the payloads."""


class RedisBlobs:
    """Blobs as plain values in the queue's own Redis."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def put(self, key: str, payload: bytes) -> None:
        await self._redis.set(self._prefix + key, payload)

    async def get(self, key: str) -> bytes | None:
        return cast("bytes | None", await self._redis.get(self._prefix + key))

    async def delete(self, keys: list[str]) -> None:
        if keys:
            await self._redis.delete(*(self._prefix + key for key in keys))


class FileBlobs:
    """Blobs as files of a shared folder or an object store."""

    def __init__(self, url: str) -> None:
        self._files, self._root = fsspec.url_to_fs(url, auto_mkdir=True)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    async def put(self, key: str, payload: bytes) -> None:
        # Written aside and moved into place, so that a reader never sees half a file.
        part = self._path(key) + ".part"
        await asyncio.to_thread(self._files.pipe_file, part, payload)
        await asyncio.to_thread(self._files.mv, part, self._path(key))

    async def get(self, key: str) -> bytes | None:
        try:
            return cast("bytes", await asyncio.to_thread(self._files.cat_file, self._path(key)))
        except FileNotFoundError:
            return None

    async def delete(self, keys: list[str]) -> None:
        for key in keys:
            try:
                await asyncio.to_thread(self._files.rm_file, self._path(key))
            except FileNotFoundError:
                continue


def open_blobs(location: str, redis: Redis, prefix: str) -> BlobStore:
    """The store that `queue.blobs` names: "redis", or an fsspec URL."""
    return RedisBlobs(redis, prefix) if location == "redis" else FileBlobs(location)
