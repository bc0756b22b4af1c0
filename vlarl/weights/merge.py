"""The weights that come of an adapter's factors.

    W = round(W0 + scaling * B @ A)        A: [rank, in], B: [out, rank]

The trainer keeps W0 frozen, learns A and B, and computes with W. The policy server receives A and
B and serves W. Both round alike, so both have the same bits (docs/decisions/0017).

**Rounding.** A checkpoint's weights lie on the grid of 16-bit numbers. An update is at first much
smaller than a step of that grid, so to round to the nearest number undoes it. Here each place of a
matrix has a threshold of its own, and a number between two of the grid goes up where what it has
beyond the lower one exceeds the threshold. Over many places the mean of what is kept is the update.
W0 itself is on the grid and stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlarl.weights.checkpoint import CheckpointReader

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""For each layer its A [rank, in] and B [out, rank]."""


@dataclass(frozen=True)
class Checksums:
    """What a sender expects of those who merge the same factors."""

    dtype: str
    """Of the merged weights: float32, bfloat16 or float16."""
    layers: Mapping[str, int]
    """See `checksum`."""


RECIPE = "float32 product, thresholds 1"
"""How factors become weights. A change of a single bit of what comes out needs another name."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What merged weights may be, by the names that configurations and servers have for them."""

_SAMPLED = 8
"""Of so many layers one is checked where a sample is."""

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Of float32's 23 bits of mantissa."""
# The two-dimensional golden ratio's sequence: any block of a matrix has thresholds that are spread
# evenly over [0, 1), see M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences".
_ROW_STEP = round(0.7548776662466927 * 2**32)
_COLUMN_STEP = round(0.5698402909980532 * 2**32)


def merge(
    weight: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    scaling: float,
    dtype: torch.dtype,
    first_row: int = 0,
) -> Tensor:
    """One layer's weight: W0 in `dtype`, plus the product in float32, rounded. On W0's device.

    Args:
        weight: W0 [out, in], or some of its rows.
        factors: A [rank, in] and B [out, rank], of the same rows and on any device; none: W0.
        scaling: alpha / rank.
        dtype: of what comes: float32, bfloat16 or float16.
        first_row: where in the layer the rows begin.
    """
    if factors is None:
        return weight.to(dtype)
    a, b = (factor.detach().to(weight.device, torch.float32) for factor in factors)
    # A trainer holds W0 in this type, and adds to that.
    return rounded(torch.addmm(weight.to(dtype).float(), b, a, alpha=scaling), dtype, first_row)


def rounded(values: Tensor, dtype: torch.dtype, first_row: int = 0) -> Tensor:
    """float32 [rows, columns] in another type, rounded by the thresholds of their places.

    Exact and the same on every device: integers alone decide.
    """
    if dtype == torch.float32:
        return values
    bits = _DROPPED_BITS[dtype]
    rows = _steps(first_row, len(values), _ROW_STEP, values.device)
    columns = _steps(0, values.shape[1], _COLUMN_STEP, values.device)
    thresholds = (rows[:, None] + columns).bitwise_right_shift_(32 - bits)
    thresholds.bitwise_and_((1 << bits) - 1)
    # A float32's bits, read as an integer, grow with its size: a carry is the next number up.
    raised = thresholds.add_(values.contiguous().view(torch.int32))
    return raised.bitwise_and_(-(1 << bits)).view(torch.float32).to(dtype)


def _steps(first: int, count: int, step: int, device: torch.device) -> Tensor:
    """(first + i) * step modulo 2^32, as int32."""
    wrapped = torch.arange(first, first + count, dtype=torch.int64) * step % 2**32
    return (wrapped - 2**31).to(torch.int32).to(device)


def merged_tensors(
    checkpoint: str | Path,
    layers: Mapping[str, tuple[int, int]],
    factors: Factors,
    scaling: float,
    dtype: torch.dtype,
    restore: Collection[str] = (),
    device: str | torch.device = "cpu",
) -> Iterator[tuple[str, Tensor]]:
    """The weights that an adapter changes, one layer at a time.

    Args:
        checkpoint: has W0.
        layers: every layer that may be adapted, with its (out, in); keys come in this order.
        factors: the adapter's.
        scaling: its alpha / rank.
        dtype: of what comes.
        restore: layers that come as the checkpoint has them where the adapter leaves them alone:
            name those that an earlier adapter had changed.
        device: where they are computed, and come.

    Raises:
        ValueError: a layer is unknown, or a factor's shape doesn't fit it.
        CheckpointError: the checkpoint can't be read.
    """
    if unknown := sorted({*factors, *restore} - layers.keys()):
        raise ValueError(f"no layer for LoRA: {', '.join(unknown[:8])}")
    for layer, (a, b) in factors.items():
        out, into = layers[layer]
        if a.shape[1:] != (into,) or b.shape != (out, a.shape[0]):
            raise ValueError(
                f"{layer}: A {list(a.shape)} and B {list(b.shape)} for [{out}, {into}]"
            )
    reader = CheckpointReader(checkpoint)
    changed = factors.keys() | set(restore)
    return (
        (key, merge(reader.tensor(key).to(device), factors.get(layer), scaling, dtype))
        for layer, key in ((layer, f"{layer}.weight") for layer in layers)
        if layer in changed
    )


def checked_layers(
    layers: Sequence[str], check: Literal["off", "sampled", "full"], turn: int = 0
) -> list[str]:
    """Those whose merged weights are compared.

    turn: a sample has others at each, until all have been.
    """
    if check == "off":
        return []
    return list(layers) if check == "full" else list(layers[turn % _SAMPLED :: _SAMPLED])


def checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Those of what `merged_tensors` gives, by layer."""
    return {key.removesuffix(".weight"): checksum(weight) for key, weight in tensors}


def checksum(weight: Tensor, first_row: int = 0) -> int:
    """A number that depends on each bit of a merged weight and on its place: 64 bits.

    It is a sum, so ranks add up those of their rows. It finds what goes wrong by chance, and is no
    proof against somebody who means to deceive.
    """
    kind = torch.int32 if weight.element_size() == 4 else torch.int16
    numbers = weight.detach().contiguous().view(kind).to(torch.int32)
    rows = _steps(first_row + 1, len(numbers), _ROW_STEP, weight.device).long()
    columns = _steps(1, numbers.shape[1], _COLUMN_STEP, weight.device)
    # Integers wrap around, and a wrapped sum doesn't depend on its order.
    return int(((numbers * columns).sum(dim=1) * rows).sum()) % 2**64
