"""Which weights serve, and how others take their place.

    stream ──▶ receive, check ──▶ memory file ──▶ merge ──▶ pause ──▶ exchange ──▶ resume
                    │                               │                     │
                 refused: the old version        failed: the        failed: the old factors
                 never noticed                   same               are merged again

An update is refused before its chunks arrive where the header says enough. Nothing of it touches
the engine before the whole adapter is here and checked. Actions go on while it is merged. The pause
is for the exchange alone: it waits for the engine's step, and actions that are half done begin
again with the new weights. Once merging has begun the swap runs to its end, whether or not the
client still listens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.weights.adapter import (
    Adapter,
    AdapterError,
    AdapterReceiver,
    content_of,
    merged_digest,
    write_adapter,
)
from vlarl_policy.metrics import PolicyMetrics
from vlarl_policy.vllm_engine import EngineDeadError, PolicyEngine

_LOG = logging.getLogger(__name__)


class VersionRefused(Exception):  # noqa: N818 - an answer, not a malfunction
    """The update is well formed, but not what may serve next."""


class SwapFailedError(RuntimeError):
    """The engine couldn't load the new weights; the old ones serve again."""


class WeightsLostError(RuntimeError):
    """Neither new nor old weights could be loaded: this process can't serve any more."""


class AdapterFile:
    """An adapter in anonymous memory, for the engine's workers to open by path.

    The kernel frees it with the last process that has it open, so a killed server leaves nothing;
    and it doesn't count against /dev/shm, which containers keep small.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._descriptor = os.memfd_create("vlarl-adapter")
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        write_adapter(adapter, Path(self.path))

    def close(self) -> None:
        """Frees the memory."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class ServingWeights:
    """The weights that answer now.

    Attributes:
        run_id: run that trained them; empty: the base checkpoint's own.
        version: policy version, 0 for the base checkpoint.
        merged_digest: SHA-256 (hex) of what the weights were made from; empty at version 0.
        content: identity of the adapter's numbers.
        file: the factors, kept to bring them back after a failed swap.
        checksums: of merged weights, by layer, as far as they were asked for.
    """

    run_id: str = ""
    version: int = 0
    merged_digest: str = ""
    content: bytes = b""
    file: AdapterFile | None = field(default=None, repr=False)
    checksums: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Pause:
    """What a swap cost those who wanted an action."""

    seconds: float
    """In which no action could start."""
    exchange_seconds: float
    """Of these, after the engine had ended the step that it was in."""


def serves_already(header: pb.AdapterHeader, serving: ServingWeights) -> bool:
    """Whether the update is a repeat of what serves.

    Raises:
        VersionRefused: it is neither a repeat nor newer, and may not take over.
    """
    if header.version == 0 and serving.version == 0:
        return True
    same_run = serving.run_id in ("", header.run_id)
    if same_run and header.version == serving.version and content_of(header) == serving.content:
        return True
    if header.takeover:
        return False
    if not same_run:
        raise VersionRefused(
            f"run {serving.run_id!r} serves at version {serving.version}; "
            f"run {header.run_id!r} has to say takeover"
        )
    if header.version == serving.version:
        raise VersionRefused(f"version {header.version} serves already, with other weights")
    if header.version < serving.version:
        raise VersionRefused(
            f"version {header.version} is older than {serving.version}, which serves"
        )
    return False


class WeightSwapper:
    """Receives adapters and swaps them in, one at a time."""

    def __init__(
        self,
        engine: PolicyEngine,
        layers: Mapping[str, tuple[int, int]],
        base_digest: str,
        metrics: PolicyMetrics,
    ) -> None:
        """`layers` and `base_digest` are `AdapterReceiver`'s."""
        self._metrics = metrics
        self._engine = engine
        self._layers = layers
        self._base_digest = base_digest
        # Factors of a higher rank have more numbers than the weights they move.
        self._max_bytes = sum(4 * out * into for out, into in layers.values())
        self._one_at_a_time = asyncio.Lock()
        self.serving = ServingWeights()

    async def update(
        self, parts: AsyncIterator[pb.AdapterHeader | pb.AdapterChunk]
    ) -> pb.UpdateWeightsResponse:
        """Takes one adapter's stream and makes it serve.

        Raises:
            AdapterError: the stream isn't a whole, valid adapter of this base checkpoint.
            VersionRefused: another version has to serve.
            SwapFailedError: the engine refused the weights; the old ones serve.
            WeightsLostError: as above, and the old ones couldn't be brought back.
            EngineDeadError: the engine is gone.
        """
        started = time.perf_counter()
        header = await anext(parts, None)
        if not isinstance(header, pb.AdapterHeader):
            raise AdapterError("header", "the first message must be the header")
        receiver = AdapterReceiver(header, self._layers, self._base_digest, self._max_bytes)
        if serves_already(header, self.serving):
            return self._answer(started, already_applied=True)
        async for part in parts:
            if not isinstance(part, pb.AdapterChunk):
                raise AdapterError("order", "a message after the header must be a chunk")
            receiver.add(part)
        adapter = receiver.finish()
        # The swap outlives its caller: a client that hangs up must not leave the engine paused.
        return await asyncio.shield(self._apply(adapter, header, receiver.received_bytes, started))

    async def _apply(
        self, adapter: Adapter, header: pb.AdapterHeader, received_bytes: int, started: float
    ) -> pb.UpdateWeightsResponse:
        async with self._one_at_a_time:
            # Another stream may have been faster.
            if serves_already(header, self.serving):
                return self._answer(started, already_applied=True)
            pause = await self.swap(adapter, header)
        self._metrics.swaps.inc()
        self._metrics.swap_bytes.inc(received_bytes)
        self._metrics.swap_seconds.observe(time.perf_counter() - started)
        answer = self._answer(started)
        answer.bytes = received_bytes
        answer.pause_seconds = pause.seconds
        answer.exchange_seconds = pause.exchange_seconds
        _LOG.info(
            "version %d of run %s serves: %d bytes, %.3f s, paused %.3f s",
            adapter.version,
            adapter.run_id,
            received_bytes,
            answer.seconds,
            pause.seconds,
        )
        return answer

    def _answer(self, started: float, *, already_applied: bool = False) -> pb.UpdateWeightsResponse:
        return pb.UpdateWeightsResponse(
            policy_version=self.serving.version,
            merged_digest=self.serving.merged_digest,
            seconds=time.perf_counter() - started,
            already_applied=already_applied,
            checksums=self.serving.checksums,
        )

    async def swap(self, adapter: Adapter, header: pb.AdapterHeader) -> Pause:
        """Puts an adapter in the place of what serves, between two actions.

        Raises:
            SwapFailedError, WeightsLostError, EngineDeadError: see `update`.
        """
        file = await asyncio.to_thread(AdapterFile, adapter) if adapter.factors else None
        old = self.serving
        try:
            checksums = await self._engine.prepare(
                file.path if file else None, adapter.checked_layers
            )
        except EngineDeadError:
            raise
        except Exception as error:
            if file:
                file.close()
            raise SwapFailedError(
                f"version {adapter.version} couldn't be merged: {error}"
            ) from error
        started = time.perf_counter()
        await self._engine.pause()
        quiet = time.perf_counter()
        try:
            await self._exchange_or_restore(file, adapter.version)
        except SwapFailedError:
            await self._engine.resume()
            raise
        self.serving = ServingWeights(
            run_id=adapter.run_id if file else "",
            version=adapter.version,
            merged_digest=merged_digest(header, self._engine.dtype),
            checksums=checksums,
            content=content_of(header) if file else b"",
            file=file,
        )
        await self._engine.resume()
        resumed = time.perf_counter()
        if old.file:
            old.file.close()
        self._metrics.weights_version.set(adapter.version)
        self._metrics.pause_seconds.observe(resumed - started)
        return Pause(resumed - started, resumed - quiet)

    async def _exchange_or_restore(self, file: AdapterFile | None, version: int) -> None:
        try:
            await self._engine.exchange(version)
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever stopped it, the old must serve
            _LOG.exception("version %d couldn't be put into place", version)
            if file:
                file.close()
            cause = str(error)
        else:
            return
        old = self.serving
        try:
            await self._engine.prepare(old.file.path if old.file else None, ())
            await self._engine.exchange(old.version)
        except EngineDeadError:
            raise
        except Exception as error:
            raise WeightsLostError(
                f"version {version} couldn't be put into place ({cause}), nor version "
                f"{old.version} brought back ({error})"
            ) from error
        raise SwapFailedError(f"version {version} couldn't be put into place: {cause}")
