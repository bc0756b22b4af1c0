"""A LoRA adapter on its way from the trainer to the policy servers.

    header   who trained it, onto which base, and every tensor with its shape and SHA-256
    chunk    tensor 0, offset 0          pieces of at most 1 MiB,
    chunk    tensor 0, offset 1 MiB      in order, without gaps
    ...

The same messages travel in `PolicyService.UpdateWeights` and `TrainerService.GetWeights`.
`AdapterReceiver` believes nothing: whatever it hands out has the right layers, shapes, checksums
and finite values, and it never holds more bytes than the header was allowed to announce.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.weights.merge import RECIPE

CHUNK_BYTES = 1 << 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FACTORS = (pb.LORA_FACTOR_A, pb.LORA_FACTOR_B)


CAUSES = ("header", "layer", "shape", "order", "checksum", "value", "truncated", "size", "base")
"""What can be wrong with an adapter, a word each: a metric's label."""


class AdapterError(ValueError):
    """An adapter that must not be used.

    Attributes:
        cause: one of `CAUSES`.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        assert cause in CAUSES, cause  # noqa: S101 - our own words
        self.cause = cause


@dataclass(frozen=True)
class Adapter:
    """Low-rank factors of W = W0 + scaling * B @ A, for each adapted layer.

    Attributes:
        run_id: run that trained it.
        version: policy version once it is merged.
        base_digest: SHA-256 (hex) of the base checkpoint's weights.
        scaling: LoRA's alpha / rank.
        factors: layer (its key in the original checkpoint, without ".weight") to
            (A [rank, in], B [out, rank]), all of one data type, float32 or bfloat16.
        checked_layers: those of whose merged weights the receiver is asked for checksums.
    """

    run_id: str
    version: int
    base_digest: str
    scaling: float
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    checked_layers: Sequence[str] = ()

    def tensors(self) -> Iterator[tuple[str, pb.LoraFactor.ValueType, torch.Tensor]]:
        """Every factor in the order of the wire."""
        for layer, pair in self.factors.items():
            for factor, tensor in zip(_FACTORS, pair, strict=True):
                yield layer, factor, tensor


def adapter_header(adapter: Adapter, *, takeover: bool = False) -> pb.AdapterHeader:
    """The first message of the adapter's stream."""
    dtypes = {tensor.dtype for _, _, tensor in adapter.tensors()} or {torch.float32}
    if len(dtypes) != 1 or not dtypes <= _DTYPE_NAMES.keys():
        raise AdapterError("header", f"factors of one type, float32 or bfloat16, not {dtypes}")
    return pb.AdapterHeader(
        run_id=adapter.run_id,
        version=adapter.version,
        base_digest=adapter.base_digest,
        scaling=adapter.scaling,
        dtype=_DTYPE_NAMES[dtypes.pop()],
        takeover=takeover,
        checked_layers=adapter.checked_layers,
        tensors=[
            pb.AdapterTensor(
                layer=layer,
                factor=factor,
                shape=tensor.shape,
                sha256=hashlib.sha256(_bytes_of(tensor)).digest(),
            )
            for layer, factor, tensor in adapter.tensors()
        ],
    )


def content_of(header: pb.AdapterHeader) -> bytes:
    """Equal for two headers of one base whose adapters merge to the same weights."""
    digest = hashlib.sha256(repr((header.scaling, header.dtype)).encode())
    for tensor in sorted(header.tensors, key=lambda one: (one.layer, one.factor)):
        digest.update(repr((tensor.layer, tensor.factor, tensor.sha256)).encode())
    return digest.digest()


def merged_digest(header: pb.AdapterHeader, dtype: str) -> str:
    """SHA-256 (hex) of all that merged weights are made from, equal for equal weights; empty where
    nothing is merged.

    dtype: of the merged weights.
    """
    if not header.tensors:
        return ""
    made_from = (RECIPE, header.base_digest, dtype, content_of(header))
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


def adapter_chunks(adapter: Adapter) -> Iterator[pb.AdapterChunk]:
    """The messages after the header."""
    for index, (_, _, tensor) in enumerate(adapter.tensors()):
        content = _bytes_of(tensor)
        for offset in range(0, len(content), CHUNK_BYTES):
            piece = bytes(content[offset : offset + CHUNK_BYTES])
            yield pb.AdapterChunk(tensor=index, offset=offset, data=piece)


def update_requests(
    adapter: Adapter, *, takeover: bool = False
) -> Iterator[pb.UpdateWeightsRequest]:
    """The whole stream of `UpdateWeights`."""
    yield pb.UpdateWeightsRequest(header=adapter_header(adapter, takeover=takeover))
    for chunk in adapter_chunks(adapter):
        yield pb.UpdateWeightsRequest(chunk=chunk)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class AdapterReceiver:
    """Puts an adapter together from its stream, and refuses anything that isn't one."""

    def __init__(
        self,
        header: pb.AdapterHeader,
        layers: Mapping[str, tuple[int, int]],
        base_digest: str,
        max_bytes: int,
    ) -> None:
        """Checks the header.

        Args:
            header: the stream's first message.
            layers: every layer that may be adapted, with its (out, in).
            base_digest: the receiver's own base checkpoint.
            max_bytes: most bytes of factors that are accepted.

        Raises:
            AdapterError: the header can't belong to a usable adapter.
        """
        _check_header(header, base_digest)
        self._header = header
        self._dtype = _DTYPES[header.dtype]
        self._sizes = [math.prod(tensor.shape) * self._dtype.itemsize for tensor in header.tensors]
        if sum(self._sizes) > max_bytes:
            raise AdapterError(
                "size", f"the adapter has {sum(self._sizes)} bytes, more than {max_bytes}"
            )
        _check_tensors(header, layers)
        self._buffers: list[bytearray] = []
        self._filled = 0
        self.received_bytes = 0

    def add(self, chunk: pb.AdapterChunk) -> None:
        """Takes the next chunk.

        Raises:
            AdapterError: out of order, too long, or the finished tensor is corrupt.
        """
        if not self._buffers or self._filled == len(self._buffers[-1]):
            if len(self._buffers) == len(self._sizes):
                raise AdapterError("order", "a chunk after the last tensor's end")
            self._buffers.append(bytearray(self._sizes[len(self._buffers)]))
            self._filled = 0
        tensor, buffer = len(self._buffers) - 1, self._buffers[-1]
        end = self._filled + len(chunk.data)
        if (chunk.tensor, chunk.offset) != (tensor, self._filled) or not chunk.data:
            raise AdapterError(
                "order",
                f"expected tensor {tensor} at offset {self._filled}, got {len(chunk.data)} bytes "
                f"of tensor {chunk.tensor} at offset {chunk.offset}",
            )
        if end > len(buffer):
            raise AdapterError("order", f"tensor {tensor} has {len(buffer)} bytes, {end} came")
        buffer[self._filled : end] = chunk.data
        self._filled = end
        self.received_bytes += len(chunk.data)
        if end == len(buffer):
            self._check_content(tensor)

    def _check_content(self, tensor: int) -> None:
        announced = self._header.tensors[tensor]
        name = f"{announced.layer} {pb.LoraFactor.Name(announced.factor)}"
        if hashlib.sha256(self._buffers[tensor]).digest() != announced.sha256:
            raise AdapterError("checksum", f"{name}: SHA-256 differs from the header's")
        if not torch.isfinite(self._tensor(tensor)).all():
            raise AdapterError("value", f"{name}: values that are not finite")

    def _tensor(self, index: int) -> torch.Tensor:
        flat = torch.frombuffer(self._buffers[index], dtype=self._dtype)
        return flat.reshape(tuple(self._header.tensors[index].shape))

    def finish(self) -> Adapter:
        """The adapter, whole and checked.

        Raises:
            AdapterError: the stream ended early.
        """
        if self.received_bytes != sum(self._sizes):
            raise AdapterError(
                "truncated",
                f"the stream ended after {self.received_bytes} of {sum(self._sizes)} bytes",
            )
        pairs: dict[str, dict[int, torch.Tensor]] = {}
        for index, tensor in enumerate(self._header.tensors):
            pairs.setdefault(tensor.layer, {})[tensor.factor] = self._tensor(index)
        return Adapter(
            run_id=self._header.run_id,
            version=self._header.version,
            base_digest=self._header.base_digest,
            scaling=self._header.scaling,
            checked_layers=list(self._header.checked_layers),
            factors={
                layer: (pair[pb.LORA_FACTOR_A], pair[pb.LORA_FACTOR_B])
                for layer, pair in pairs.items()
            },
        )


def _check_header(header: pb.AdapterHeader, base_digest: str) -> None:
    if not header.run_id or len(header.run_id) > 256:
        raise AdapterError("header", "run_id must have 1 to 256 characters")
    if header.version < 0:
        raise AdapterError("header", f"version {header.version} is negative")
    if (header.version == 0) != (not header.tensors):
        raise AdapterError("header", "version 0 is the base checkpoint: it has no tensors")
    if header.dtype not in _DTYPES:
        raise AdapterError("header", f"dtype {header.dtype!r} is none of {', '.join(_DTYPES)}")
    if header.tensors and not (math.isfinite(header.scaling) and header.scaling > 0):
        raise AdapterError("header", f"scaling must be positive and finite, not {header.scaling}")
    if header.base_digest != base_digest:
        raise AdapterError(
            "base",
            f"the adapter belongs to base checkpoint {header.base_digest[:12] or '(none)'}, this "
            f"is {base_digest[:12]}",
        )


def _check_tensors(header: pb.AdapterHeader, layers: Mapping[str, tuple[int, int]]) -> None:
    if unknown := set(header.checked_layers) - layers.keys():
        raise AdapterError("layer", f"unknown layer {min(unknown)!r} to be checked")
    ranks: dict[str, dict[int, int]] = {}
    for tensor in header.tensors:
        if tensor.layer not in layers:
            raise AdapterError("layer", f"unknown layer {tensor.layer!r}")
        if tensor.factor not in _FACTORS:
            raise AdapterError("header", f"{tensor.layer}: factor must be A or B")
        seen = ranks.setdefault(tensor.layer, {})
        if tensor.factor in seen:
            raise AdapterError("header", f"{tensor.layer}: a factor is announced twice")
        out_features, in_features = layers[tensor.layer]
        shape = list(tensor.shape)
        rank = shape[0 if tensor.factor == pb.LORA_FACTOR_A else -1] if len(shape) == 2 else 0
        expected = (
            [rank, in_features] if tensor.factor == pb.LORA_FACTOR_A else [out_features, rank]
        )
        if shape != expected or not 1 <= rank <= min(out_features, in_features):
            raise AdapterError(
                "shape",
                f"{tensor.layer}: shape {shape} doesn't fit a layer of {out_features} x "
                f"{in_features}",
            )
        seen[tensor.factor] = rank
    for layer, seen in ranks.items():
        if len(seen) != 2:
            raise AdapterError("layer", f"{layer}: one of its two factors is missing")
        if len(set(seen.values())) != 1:
            raise AdapterError("shape", f"{layer}: A has rank {seen[1]}, B has rank {seen[2]}")


def write_adapter(adapter: Adapter, path: Path) -> None:
    """Writes the adapter as a safetensors file."""
    tensors = {
        f"{layer}.{'A' if factor == pb.LORA_FACTOR_A else 'B'}": tensor.detach().contiguous()
        for layer, factor, tensor in adapter.tensors()
    }
    metadata = {
        "run_id": adapter.run_id,
        "version": str(adapter.version),
        "base_digest": adapter.base_digest,
        "scaling": repr(adapter.scaling),
    }
    path.write_bytes(save(tensors, metadata=metadata))


def read_adapter(path: Path) -> Adapter:
    """Reads what `write_adapter` wrote."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        layers = dict.fromkeys(key.rpartition(".")[0] for key in file.keys())  # noqa: SIM118
        return Adapter(
            run_id=metadata["run_id"],
            version=int(metadata["version"]),
            base_digest=metadata["base_digest"],
            scaling=float(metadata["scaling"]),
            factors={
                layer: (file.get_tensor(f"{layer}.A"), file.get_tensor(f"{layer}.B"))
                for layer in layers
            },
        )
