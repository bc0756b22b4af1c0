"""The adapter on the wire: whatever comes out is whole, and anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.policy.v1 import policy_pb2 as pb  # noqa: E402
from vlarl.weights import adapter as wire  # noqa: E402

pytestmark = pytest.mark.torch

LAYERS = {"big": (1000, 1000), "small": (5, 3)}
BASE = "b" * 64


def make_adapter(dtype: torch.dtype = torch.float32) -> wire.Adapter:
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for layer, (out_features, in_features) in LAYERS.items():
        rank = 2 if layer == "small" else 600
        a = torch.randn(rank, in_features, generator=generator).to(dtype)
        b = torch.randn(out_features, rank, generator=generator).to(dtype)
        factors[layer] = (a, b)
    return wire.Adapter("run", 3, BASE, 0.5, factors)


def receive(header: pb.AdapterHeader, chunks: list[pb.AdapterChunk]) -> wire.Adapter:
    receiver = wire.AdapterReceiver(header, LAYERS, BASE, max_bytes=1 << 24)
    for chunk in chunks:
        receiver.add(chunk)
    return receiver.finish()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_survives_the_wire_and_a_file(dtype: torch.dtype, tmp_path: Path) -> None:
    sent = make_adapter(dtype)
    chunks = list(wire.adapter_chunks(sent))
    assert max(len(chunk.data) for chunk in chunks) <= wire.CHUNK_BYTES
    assert len(chunks) > len(list(sent.tensors()))  # the big factors take several

    got = receive(wire.adapter_header(sent), chunks)
    wire.write_adapter(got, tmp_path / "adapter.safetensors")
    read = wire.read_adapter(tmp_path / "adapter.safetensors")

    for other in (got, read):
        assert (other.run_id, other.version, other.base_digest, other.scaling) == (
            "run",
            3,
            BASE,
            0.5,
        )
        assert set(other.factors) == set(LAYERS)
        for layer, pair in sent.factors.items():
            for mine, theirs in zip(pair, other.factors[layer], strict=True):
                assert theirs.dtype == dtype
                assert torch.equal(mine, theirs)


def test_version_zero_is_the_base_and_empty() -> None:
    got = receive(wire.adapter_header(wire.Adapter("run", 0, BASE, 0.0, {})), [])
    assert got.version == 0
    assert not got.factors


def _set(**fields: object) -> Callable[[pb.AdapterHeader], None]:
    def change(header: pb.AdapterHeader) -> None:
        for name, value in fields.items():
            setattr(header, name, value)

    return change


def _tensor(**fields: object) -> Callable[[pb.AdapterHeader], None]:
    def change(header: pb.AdapterHeader) -> None:
        for name, value in fields.items():
            if name == "shape":
                header.tensors[2].shape[:] = value
            else:
                setattr(header.tensors[2], name, value)

    return change


def _drop_last(header: pb.AdapterHeader) -> None:
    del header.tensors[-1]


def _repeat_last(header: pb.AdapterHeader) -> None:
    header.tensors.append(header.tensors[-1])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_set(run_id=""), "header"),
        (_set(version=-1), "header"),
        (_set(version=0), "header"),
        (_set(dtype="float16"), "header"),
        (_set(scaling=float("nan")), "header"),
        (_set(scaling=0.0), "header"),
        (_set(base_digest="c" * 64), "base"),
        (_tensor(layer="nowhere"), "layer"),
        (_tensor(factor=pb.LORA_FACTOR_UNSPECIFIED), "header"),
        (_tensor(shape=[2, 4]), "shape"),
        (_tensor(shape=[4, 3]), "shape"),  # rank above what the layer can have
        (_tensor(shape=[1, 3]), "shape"),  # A and B of different ranks
        (_tensor(shape=[6]), "shape"),
        (_tensor(shape=[0, 3]), "shape"),
        (_tensor(shape=[1 << 40, 3]), "size"),
        (_drop_last, "layer"),
        (_repeat_last, "header"),
    ],
)
def test_a_wrong_header_is_refused(change: Callable[[pb.AdapterHeader], None], cause: str) -> None:
    header = wire.adapter_header(make_adapter())
    change(header)
    with pytest.raises(wire.AdapterError) as refused:
        wire.AdapterReceiver(header, LAYERS, BASE, max_bytes=1 << 24)
    assert refused.value.cause == cause


def test_wrong_chunks_are_refused() -> None:
    sent = make_adapter()
    header, chunks = wire.adapter_header(sent), list(wire.adapter_chunks(sent))

    def cause(pieces: list[pb.AdapterChunk]) -> str:
        with pytest.raises(wire.AdapterError) as refused:
            receive(header, pieces)
        return refused.value.cause

    flipped = pb.AdapterChunk()
    flipped.CopyFrom(chunks[0])
    flipped.data = bytes([flipped.data[0] ^ 1]) + flipped.data[1:]
    too_long = pb.AdapterChunk()
    too_long.CopyFrom(chunks[-1])
    too_long.data += b"\0"
    empty = pb.AdapterChunk(tensor=0, offset=0)
    assert cause([flipped, *chunks[1:]]) == "checksum"
    assert cause(chunks[:-1]) == "truncated"
    assert cause([]) == "truncated"
    assert cause([chunks[0], chunks[0]]) == "order"
    assert cause(chunks[1:]) == "order"
    assert cause([empty, *chunks]) == "order"
    assert cause([*chunks[:-1], too_long]) == "order"
    assert cause([*chunks, chunks[-1]]) == "order"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    sent = make_adapter()
    sent.factors["small"][1][0, 0] = value
    with pytest.raises(wire.AdapterError) as refused:
        receive(wire.adapter_header(sent), list(wire.adapter_chunks(sent)))
    assert refused.value.cause == "value"
