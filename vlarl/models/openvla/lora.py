"""LoRA: which layers it may change, and the weights that come of it.

    W = W0 + scaling * B @ A        A: [rank, in], B: [out, rank]

The trainer keeps W0 frozen and learns A and B; the policy server receives A and B and serves W.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.tensors import stored_tensors, unused_prefixes
from vlarl.weights.checkpoint import CheckpointReader, tensors_digest

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""For each layer its A [rank, in] and B [out, rank]."""

_EMBEDDINGS = ("language_model.model.embed_tokens.", "language_model.lm_head.")


def lora_layers(config: OpenVLAConfig) -> dict[str, tuple[int, int]]:
    """Every linear layer that the forward pass uses, by its checkpoint key without ``.weight``.

    The values are (out, in). Left out are the towers' last blocks and attention pool, which are
    stored but never computed, and the language model's head.
    """
    unused = unused_prefixes(config)
    layers: dict[str, tuple[int, int]] = {}
    for key, shape in stored_tensors(config).items():
        layer, _, kind = key.rpartition(".")
        if kind == "weight" and len(shape) == 2 and not key.startswith((*unused, *_EMBEDDINGS)):
            layers[layer] = (shape[0], shape[1])
    return layers


def merged_tensors(
    checkpoint: str | Path,
    factors: Factors,
    scaling: float,
    dtype: torch.dtype,
    restore: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """The weights that an adapter changes, merged in float32 and cast, one layer at a time.

    Keys come in ``lora_layers``' order, on the CPU. Layers in ``restore`` that the adapter leaves
    alone come as the checkpoint has them: name those that an earlier adapter had changed.

    Raises:
        ValueError: a layer is unknown, or a factor's shape doesn't fit it.
        ConfigError, CheckpointError: the checkpoint can't be read.
    """
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    if unknown := sorted({*factors, *restore} - layers.keys()):
        raise ValueError(f"no layer for LoRA: {', '.join(unknown[:8])}")
    for layer, (a, b) in factors.items():
        out, into = layers[layer]
        if a.shape[1:] != (into,) or b.shape != (out, a.shape[0]):
            raise ValueError(
                f"{layer}: A {list(a.shape)} and B {list(b.shape)} for [{out}, {into}]"
            )
    return _merge(CheckpointReader(checkpoint), layers, factors, scaling, dtype, set(restore))


def merged_digest(tensors: Iterator[tuple[str, Tensor]]) -> str:
    """SHA-256 over merged tensors: keys, data types, shapes and bytes, in order."""
    return tensors_digest(tensors)


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
