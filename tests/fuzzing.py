"""Bad requests by the thousand: what a valid one becomes when its bytes are damaged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np

_TOGETHER = 32


def damaged(rng: np.random.Generator, good: Sequence[bytes]) -> bytes:
    """One of the good requests, or pure noise, with bytes changed, cut off, doubled or moved."""
    data = bytearray(good[rng.integers(len(good))])
    kind = rng.integers(6)
    if kind == 0 or not data:
        return rng.bytes(int(rng.integers(1, 200)))
    if kind == 1:
        return bytes(data[: rng.integers(len(data))])
    if kind == 2:
        start, stop = np.sort(rng.integers(0, len(data) + 1, 2))
        return bytes(data[:stop] + data[start:])
    if kind == 3:
        start, stop = np.sort(rng.integers(0, len(data) + 1, 2))
        return bytes(data[:start] + rng.bytes(int(stop - start)) + data[stop:])
    # The beginning holds tags and lengths: where damage tells most.
    reach = len(data) if kind == 4 else min(len(data), 40)
    for place in rng.integers(0, reach, int(rng.integers(1, 8))):
        data[place] = rng.integers(256)
    return bytes(data)


def _identity(data: bytes) -> bytes:
    return data


async def bombard(
    channel: grpc.aio.Channel, method: str, payloads: Sequence[bytes], seconds: float = 30.0
) -> Counter[grpc.StatusCode]:
    """Sends raw requests to a unary method, many at once; how many ended with which code."""
    call: Any = channel.unary_unary(method, _identity, _identity)
    free = asyncio.Semaphore(_TOGETHER)

    async def one(payload: bytes) -> grpc.StatusCode:
        async with free:
            try:
                await call(payload, timeout=seconds)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

    return Counter(await asyncio.gather(*(one(payload) for payload in payloads)))


async def bombard_stream(
    channel: grpc.aio.Channel,
    method: str,
    streams: Sequence[Sequence[bytes]],
    *,
    answers: bool,
    seconds: float = 30.0,
) -> Counter[grpc.StatusCode]:
    """The same to a method with a request stream, one stream after the other; `answers`: it has
    a response stream, too.
    """
    kind = channel.stream_stream if answers else channel.stream_unary
    call: Any = kind(method, _identity, _identity)
    codes = Counter[grpc.StatusCode]()

    async def parts(stream: Sequence[bytes]) -> AsyncIterator[bytes]:
        for part in stream:
            yield part

    for stream in streams:
        try:
            answered = call(parts(stream), timeout=seconds)
            if answers:
                async for _ in answered:
                    pass
            else:
                await answered
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1
        else:
            codes[grpc.StatusCode.OK] += 1
    return codes
