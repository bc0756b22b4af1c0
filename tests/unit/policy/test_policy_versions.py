"""Which version may follow which, and what a failed swap leaves serving."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from prometheus_client import CollectorRegistry  # noqa: E402

from vlarl.policy.v1 import policy_pb2 as pb  # noqa: E402
from vlarl.weights.adapter import Adapter, adapter_header, read_adapter  # noqa: E402
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
    """An engine whose merges fail when the script says so."""

    outcomes: list[bool]
    merged: list[tuple[float | None, int]] = field(default_factory=list)
    paused: bool = False

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def merge(self, path: str | None, version: int) -> str:
        assert self.paused
        value = None if path is None else float(read_adapter(Path(path)).factors["layer"][0][0, 0])
        self.merged.append((value, version))
        if not self.outcomes.pop(0):
            raise RuntimeError("half way")
        return f"digest {version}"


def swapper_on(engine: ScriptedEngine) -> WeightSwapper:
    metrics = PolicyMetrics(CollectorRegistry())
    return WeightSwapper(engine, {"layer": (2, 3)}, BASE, metrics)  # type: ignore[arg-type]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors, not files


async def test_a_failed_merge_brings_the_old_factors_back() -> None:
    engine = ScriptedEngine([True, False, True, True])
    swapper = swapper_on(engine)
    await swapper.swap(make_adapter(1, 1.0), b"one")
    files = open_files()
    with pytest.raises(SwapFailedError, match="half way"):
        await swapper.swap(make_adapter(2, 2.0), b"two")
    assert engine.merged == [(1.0, 1), (2.0, 2), (1.0, 1)]
    assert (swapper.serving.version, swapper.serving.content) == (1, b"one")
    assert not engine.paused
    assert open_files() == files
    await swapper.swap(make_adapter(3, 3.0), b"three")
    assert swapper.serving.merged_digest == "digest 3"
    assert open_files() == files  # the old factors' memory is freed


async def test_weights_that_nothing_brings_back_are_lost() -> None:
    engine = ScriptedEngine([False, False])
    with pytest.raises(WeightsLostError, match="version 0"):
        await swapper_on(engine).swap(make_adapter(1), b"one")
    assert engine.paused  # an engine with broken weights must not answer
