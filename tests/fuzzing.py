"""Bad requests by the thousand: what a valid one becomes when its bytes are damaged, and messages
that are sound as messages and make no sense.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_status import rpc_status

_TOGETHER = 32
_LARGE = 2**20 * 30
"""Bytes of a request that the servers' limit of 32 MiB just lets in."""

_PATIENCE = 200.0
"""Seconds for one answer. Enormous requests wait for one another, on a machine with other work."""

M = TypeVar("M", bound=Message)


def fuzz_requests(usual: int) -> int:
    """How many requests a test sends: VLARL_FUZZ_REQUESTS, or its usual share."""
    return int(os.environ.get("VLARL_FUZZ_REQUESTS", str(usual)))


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


def wild(rng: np.random.Generator, kind: type[M], words: Sequence[str]) -> M:
    """A message of this kind, each field of it left out or filled with what its type allows and
    nobody expects; strings are now and then one of `words`, which mean something to the server.
    """
    message = kind()
    _fill(rng, message, words)
    return message


def large(kind: type[M], path: str, value: str | float | Message) -> bytes:
    """A message as large as may be: the field PATH (dots go deeper) takes all of it, as one long
    string, or as often as it fits.
    """
    message: Any = kind()
    *above, name = path.split(".")
    inner = message
    for part in above:
        inner = getattr(inner, part)
    if isinstance(value, str):
        size = len(value.encode()) + 2
    else:
        size = value.ByteSize() + 2 if isinstance(value, Message) else 4
    if inner.DESCRIPTOR.fields_by_name[name].is_repeated:
        getattr(inner, name).extend([value] * (_LARGE // size))
    else:
        setattr(inner, name, value * (_LARGE // size))
    sent: bytes = message.SerializeToString()
    return sent


_FLOATS = (0.0, 1.0, -1.0, 1e-40, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
_STRINGS = ("", " ", "\0", "é" * 300, "../../etc/passwd", "a" * 5000, "{}", "%s", "\U0001f916")


def _fill(rng: np.random.Generator, message: Message, words: Sequence[str]) -> None:
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3:
            continue
        if field.message_type is not None:
            for _ in range(int(rng.integers(9)) if field.is_repeated else 1):
                part = getattr(message, field.name)
                inner = part.add() if field.is_repeated else part
                inner.SetInParent()
                _fill(rng, inner, words)
        elif field.is_repeated:
            count = int(rng.choice([0, 1, 6, 7, 8, 300], p=[0.1, 0.1, 0.2, 0.4, 0.1, 0.1]))
            getattr(message, field.name).extend(_scalar(rng, field, words) for _ in range(count))
        else:
            setattr(message, field.name, _scalar(rng, field, words))


def _scalar(rng: np.random.Generator, field: FieldDescriptor, words: Sequence[str]) -> object:
    kinds = FieldDescriptor
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        if rng.random() < 0.5:
            return float(rng.choice(_FLOATS))
        # Of any magnitude that might be meant: bounds lie among these.
        return float(rng.choice((1, -1), p=(0.9, 0.1)) * 10 ** rng.uniform(-4, 4))
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return bool(rng.integers(2))
    if field.type == kinds.TYPE_BYTES:
        return rng.bytes(int(rng.choice([0, 1, 200])))
    if field.cpp_type == kinds.CPPTYPE_STRING:
        choices = (*words, *_STRINGS) if rng.random() < 0.5 else words or _STRINGS
        return choices[rng.integers(len(choices))]
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return int(rng.choice([0, 1, 2, 77]))
    bits = 32 if field.cpp_type in (kinds.CPPTYPE_INT32, kinds.CPPTYPE_UINT32) else 64
    signed = field.cpp_type in (kinds.CPPTYPE_INT32, kinds.CPPTYPE_INT64)
    highest = 2 ** (bits - signed) - 1
    if rng.random() < 0.3:
        return int(2 ** rng.uniform(0, 31))
    choices = [0, 1, 2, 7, 32_000, highest, -highest - 1 if signed else 3]
    return choices[rng.integers(len(choices))]


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    memory_mib: float
    open_files: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Of a living process, now."""
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(resident * os.sysconf("SC_PAGE_SIZE") / 2**20, files)

    def grown_since(self, before: Footprint) -> bool:
        """Whether by more than a few files and some memory."""
        more_files = self.open_files > before.open_files + 8
        return more_files or self.memory_mib > before.memory_mib + 100


async def bombard_without_leak(
    pid: int, bombardment: Callable[[], Awaitable[Counter[grpc.StatusCode]]]
) -> Counter[grpc.StatusCode]:
    """What a bombardment of a process counts; it is repeated while the process grows by it.

    A leak grows with every repetition. What an allocator keeps of the largest requests doesn't, but
    how many of them met, and with it the most that it kept, differs from one to the next.
    """
    held = [Footprint.of(pid)]
    for _ in range(4):
        codes = await bombardment()
        held.append(Footprint.of(pid))
        if not held[-1].grown_since(held[-2]):
            return codes
    raise AssertionError(f"a leak: {held}")


def said(what: str, codes: Iterable[tuple[grpc.StatusCode, int]]) -> None:
    """Prints counts by code: `pytest -s` shows them."""
    counts = ", ".join(f"{count} {code.name}" for code, count in sorted(codes, key=str))
    print(f"{what}: {counts}")


def _identity(data: bytes) -> bytes:
    return data


async def bombard(
    channel: grpc.aio.Channel, method: str, payloads: Sequence[bytes], seconds: float = _PATIENCE
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


async def bombard_answers(
    channel: grpc.aio.Channel, method: str, payloads: Sequence[bytes], seconds: float = _PATIENCE
) -> Counter[grpc.StatusCode]:
    """The same to a method that answers with a stream, one after the other."""
    call: Any = channel.unary_stream(method, _identity, _identity)
    codes = Counter[grpc.StatusCode]()
    for payload in payloads:
        try:
            async for _ in call(payload, timeout=seconds):
                pass
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1
        else:
            codes[grpc.StatusCode.OK] += 1
    return codes


async def bombard_stream(
    channel: grpc.aio.Channel,
    method: str,
    streams: Sequence[Sequence[bytes]],
    *,
    answers: bool,
    seconds: float = _PATIENCE,
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
        if not answers:
            # Where the server ends the call while a part is being written, grpcio makes an
            # INTERNAL of its own of the server's code. The servers' own says its reason.
            for _ in range(5):
                ended = call(parts(stream), timeout=seconds)
                code = await _code(ended)
                if code is not grpc.StatusCode.INTERNAL or await _has_details(ended):
                    break
            codes[code] += 1
            continue
        answered = call(timeout=seconds)
        # In turn, for the same reason.
        with contextlib.suppress(grpc.aio.AioRpcError):
            for part in stream:
                await answered.write(part)
                if await answered.read() is grpc.aio.EOF:
                    break
            else:
                await answered.done_writing()
                await answered.read()
        codes[await answered.code()] += 1
    return codes


async def _code(call: Any) -> grpc.StatusCode:  # noqa: ANN401
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call
    code: grpc.StatusCode = await call.code()
    return code


async def _has_details(call: Any) -> bool:  # noqa: ANN401
    try:
        return await rpc_status.aio.from_call(call) is not None
    except ValueError:  # Those of another code.
        return False
