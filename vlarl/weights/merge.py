"""The weights that come of an adapter's factors.

    W = W0 + scaling * B @ A        A: [rank, in], B: [out, rank]

The trainer keeps W0 frozen and learns A and B; the policy server receives A and B and serves W.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlarl.weights.checkpoint import CheckpointReader

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""For each layer its A [rank, in] and B [out, rank]."""


def merged_tensors(
    checkpoint: str | Path,
    layers: Mapping[str, tuple[int, int]],
    factors: Factors,
    scaling: float,
    dtype: torch.dtype,
    restore: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """The weights that an adapter changes, merged in float32 and cast, one layer at a time.

    Args:
        checkpoint: has W0.
        layers: every layer that may be adapted, with its (out, in); keys come in this order.
        factors: the adapter's.
        scaling: its alpha / rank.
        dtype: of what comes, which is on the CPU.
        restore: layers that come as the checkpoint has them where the adapter leaves them alone:
            name those that an earlier adapter had changed.

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
    return _merge(CheckpointReader(checkpoint), layers, factors, scaling, dtype, set(restore))


def _merge(
    reader: CheckpointReader,
    layers: Collection[str],
    factors: Factors,
    scaling: float,
    dtype: torch.dtype,
    restore: set[str],
) -> Iterator[tuple[str, Tensor]]:
    for layer in layers:
        if layer not in factors and layer not in restore:
            continue
        weight = reader.tensor(f"{layer}.weight").float()
        if layer in factors:
            a, b = factors[layer]
            weight = weight + scaling * (b.detach().cpu().float() @ a.detach().cpu().float())
        yield f"{layer}.weight", weight.to(dtype)
