"""Which version may follow which, and what a failed swap leaves serving."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from prometheus_client import CollectorRegistry  # noqa: E402

from vlarl.policy.v1 import policy_pb2 as pb  # noqa: E402
from vlarl.weights.adapter import (  # noqa: E402
    Adapter,
    adapter_header,
    merged_digest,
    read_adapter,
)
from vlarl_policy.metrics import PolicyMetrics  # noqa: E402
from vlarl_policy.swap import (  # noqa: E402
    ServingWeights,
    SwapFailedError,
    VersionRefused,
    WeightsLostError,
    WeightSwapper,
    content_of,
    serves_already,
)

pytestmark = pytest.mark.torch
BASE = "b" * 64


def make_adapter(version: int, value: float = 1.0, run: str = "run") -> Adapter:
    factors = {"layer": (torch.full((1, 3), value), torch.full((2, 1), value))}
    return Adapter(run, version, BASE, 0.5, factors)


def header(
    version: int, value: float = 1.0, run: str = "run", *, takeover: bool = False
) -> pb.AdapterHeader:
    return adapter_header(make_adapter(version, value, run), takeover=takeover)


SERVING = ServingWeights("run", 5, "digest", content_of(header(5)))


@pytest.mark.parametrize(
    ("update", "serving", "repeat"),
    [
        (header(1), ServingWeights(), False),
        (header(6), SERVING, False),
        (header(9), SERVING, False),
        (header(5), SERVING, True),
        (header(5, takeover=True), SERVING, True),
        (header(5, 2.0, takeover=True), SERVING, False),
        (header(2, takeover=True), SERVING, False),
        (header(2, run="other", takeover=True), SERVING, False),
        (header(5, run="other", takeover=True), SERVING, False),
        (pb.AdapterHeader(run_id="other"), ServingWeights(), True),
        (pb.AdapterHeader(run_id="run", takeover=True), SERVING, False),
    ],
)
def test_what_may_follow(update: pb.AdapterHeader, serving: ServingWeights, repeat: bool) -> None:
    assert serves_already(update, serving) is repeat


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (header(4), "older"),
        (header(5, 2.0), "already"),
        (header(6, run="other"), "takeover"),
        (header(5, run="other"), "takeover"),
        (pb.AdapterHeader(run_id="run"), "older"),
    ],
)
def test_what_may_not_follow(update: pb.AdapterHeader, words: str) -> None:
    with pytest.raises(VersionRefused, match=words):
        serves_already(update, SERVING)


def test_content_tells_numbers_apart_but_not_their_order() -> None:
    first, second = header(1), header(1)
    second.tensors.reverse()
    assert content_of(first) == content_of(second)
    second.tensors[0].sha256 = bytes(32)
    assert content_of(first) != content_of(second)
    scaled = header(1)
    scaled.scaling = 0.25
    assert content_of(first) != content_of(scaled)


@dataclass
class ScriptedEngine:
    """An engine whose exchanges, or merges, fail when the script says so."""

    outcomes: list[bool]
    merged: list[tuple[float | None, int]] = field(default_factory=list)
    paused: bool = False
    dtype: str = "float16"
    broken_adapter: bool = False
    _prepared: float | None = None

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def prepare(self, path: str | None, checked_layers: Sequence[str]) -> dict[str, int]:
        if self.broken_adapter:
            assert not self.paused
            raise RuntimeError("no memory")
        factors = read_adapter(Path(path)).factors if path else None
        self._prepared = None if factors is None else float(factors["layer"][0][0, 0])
        return dict.fromkeys(checked_layers, 7)

    async def exchange(self, version: int) -> None:
        assert self.paused
        self.merged.append((self._prepared, version))
        if not self.outcomes.pop(0):
            raise RuntimeError("half way")


def swapper_on(engine: ScriptedEngine) -> WeightSwapper:
    metrics = PolicyMetrics(CollectorRegistry())
    return WeightSwapper(engine, {"layer": (2, 3)}, BASE, metrics)  # type: ignore[arg-type]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors, not files


async def swap(swapper: WeightSwapper, adapter: Adapter) -> None:
    await swapper.swap(adapter, adapter_header(adapter))


async def test_a_failed_exchange_brings_the_old_factors_back() -> None:
    engine = ScriptedEngine([True, False, True, True])
    swapper = swapper_on(engine)
    first = replace(make_adapter(1, 1.0), checked_layers=["layer"])
    await swap(swapper, first)
    assert swapper.serving.checksums == {"layer": 7}
    files, served = open_files(), swapper.serving
    with pytest.raises(SwapFailedError, match="half way"):
        await swap(swapper, make_adapter(2, 2.0))
    assert engine.merged == [(1.0, 1), (2.0, 2), (1.0, 1)]
    assert swapper.serving is served
    assert not engine.paused
    assert open_files() == files
    third = make_adapter(3, 3.0)
    await swap(swapper, third)
    assert swapper.serving.merged_digest == merged_digest(adapter_header(third), "float16")
    assert open_files() == files  # the old factors' memory is freed


async def test_an_adapter_that_cannot_be_merged_never_pauses_the_engine() -> None:
    engine = ScriptedEngine([True])
    swapper = swapper_on(engine)
    await swap(swapper, make_adapter(1, 1.0))
    files, served = open_files(), swapper.serving
    engine.broken_adapter = True
    with pytest.raises(SwapFailedError, match="no memory"):
        await swap(swapper, make_adapter(2, 2.0))
    assert swapper.serving is served
    assert engine.merged == [(1.0, 1)]
    assert open_files() == files


async def test_weights_that_nothing_brings_back_are_lost() -> None:
    engine = ScriptedEngine([False, False])
    with pytest.raises(WeightsLostError, match="version 0"):
        await swap(swapper_on(engine), make_adapter(1))
    assert engine.paused  # an engine with broken weights must not answer


def test_a_digest_is_of_all_that_weights_are_made_from() -> None:
    adapter = make_adapter(4, 4.0)
    digest = merged_digest(adapter_header(adapter), "float32")
    others = [
        (replace(adapter, scaling=0.25), "float32"),
        (replace(adapter, base_digest="c" * 64), "float32"),
        (make_adapter(4, 5.0), "float32"),
        (adapter, "bfloat16"),
    ]
    digests = {merged_digest(adapter_header(one), dtype) for one, dtype in others}
    assert len(digests | {digest}) == 5
    later = replace(adapter, version=9, run_id="another", checked_layers=["layer"])
    assert merged_digest(adapter_header(later), "float32") == digest
