"""What a rank keeps in memory while it learns, by arithmetic, and what follows from it: whether the
frozen weights lie whole on each rank, and whether activations are kept for the backward pass.

The numbers of bytes are upper bounds. docs/sizing.md compares them with what was measured.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch

from vlarl.config import TrainerConfig
from vlarl.learning.ranks import Ranks
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.tensors import stored_tensors

GIB = 2**30
PROMPT_TOKENS = 64
"""An instruction's prompt in training, and one action's tokens; LIBERO's are shorter. The tokens of
further actions of an answer come to it."""
ASIDE_BYTES = 3 * GIB
"""What isn't tensors: a process's CUDA context, the libraries' workspaces, and what the allocator
holds and can't give out. An allowance, not derived."""

LEAST_TOKENS = 4096
"""Micro-batches are made no smaller than this for activations to be kept. Passes of 2,400 tokens
reached 0.16 of an H100, and those of 4,800 reached 0.26 (docs/gpu.md): to halve them costs
more than a block computed again."""

Budget = dict[str, int]
"""Bytes of each part."""


@dataclass(frozen=True)
class Placement:
    """How a rank learns, as far as memory decides it."""

    sharded: bool
    """Whether each rank holds a part of the frozen weights, or all of them."""
    recomputed: bool
    """Whether blocks' activations are computed again in the backward pass, or kept."""
    most_tokens: int | None = None
    """Most tokens in a pass with gradient; None: as many as the configuration says."""

    def __str__(self) -> str:
        weights = "in parts" if self.sharded else "whole on each rank"
        activations = "computed again" if self.recomputed else "kept"
        bound = "" if self.most_tokens is None else f", at most {self.most_tokens} tokens at once"
        return f"frozen weights {weights}, activations {activations}{bound}"


def parameter_counts(model: OpenVLAConfig) -> dict[str, int]:
    """Parameters of the checkpoint's parts."""
    names = {
        "vision_backbone.featurizer": "first tower",
        "vision_backbone.fused_featurizer": "second tower",
        "projector": "projector",
        "language_model": "language model",
    }
    counts: Counter[str] = Counter()
    for key, shape in stored_tensors(model).items():
        (part,) = (name for prefix, name in names.items() if key.startswith(prefix + "."))
        counts[part] += math.prod(shape)
    if read := model.spec.proprio_dim:
        width = model.text.hidden_size
        counts["proprioception's projector"] = (read + 1 + width + 1) * width
    return dict(counts)


def sequence_length(model: OpenVLAConfig) -> int:
    """Tokens of a sample that the language model reads, with a prompt of `PROMPT_TOKENS`."""
    spec = model.spec
    further = spec.tokens - spec.action_dim + bool(spec.proprio_dim)
    if spec.chunk > 1:
        further += 2  # the last token, which one step's pass doesn't read, and stop
    return image_tokens(model) + PROMPT_TOKENS + further


def image_tokens(model: OpenVLAConfig) -> int:
    """Tokens of all of a sample's images."""
    return len(model.spec.cameras) * model.num_patches


def factor_count(model: OpenVLAConfig, rank: int) -> int:
    """Parameters of LoRA's factors on all layers."""
    return sum(rank * (out + into) for out, into in lora_layers(model).values())


def tensors(
    config: TrainerConfig,
    model: OpenVLAConfig,
    placement: Placement,
    *,
    ranks: int = 1,
    itemsize: int = 2,
) -> Budget:
    """Tensors of one rank while it learns.

    Args:
        config: the trainer's.
        model: the checkpoint's sizes.
        placement: how it learns.
        ranks: which learn together.
        itemsize: bytes of a number in the passes.
    """
    parameters, factors = parameter_counts(model), factor_count(model, config.lora.rank)
    adapted = sum(out * into for out, into in lora_layers(model).values())
    parts = ranks if placement.sharded else 1
    found = {
        "weights": itemsize * sum(parameters.values()) // parts,
        "W0 of adapted layers, beside the merged": itemsize * adapted // parts,
        "LoRA factors, float32": 4 * factors // parts,
        "their gradients and Adam's moments": 12 * factors // parts,
    }
    if config.algorithm == "ppo":
        found["critic, its gradients and moments"] = 16 * _critic_count(config, model)
    if placement.sharded:
        # What FSDP puts together for use: the part outside all blocks (embedding, head, projector),
        # and two language blocks, one of them ahead of time.
        text = model.text
        language = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
        outside = 2 * text.vocab_size * text.hidden_size + parameters["projector"]
        found["layers gathered for use"] = itemsize * (outside + 2 * language)
    return found | _activations(config, model, placement, itemsize)


def _activations(
    config: TrainerConfig, model: OpenVLAConfig, placement: Placement, itemsize: int
) -> Budget:
    """What a micro-batch's pass with gradient keeps, at most."""
    length = sequence_length(model)
    rows = _rows(config, length, placement.most_tokens)
    tokens, images = rows * length, rows * len(model.spec.cameras)
    dim, hidden = model.text.hidden_size, model.text.intermediate_size
    layers = model.text.num_hidden_layers
    # What autograd keeps of a block for each token: norms' inputs in float32, and what layers,
    # attention and the MLP multiply, in the passes' type.
    block = tokens * ((9 + 6 * itemsize) * dim + 4 * itemsize * hidden)
    inputs, kept = itemsize * tokens * dim * layers, block * layers
    for tower in model.towers:
        patches = images * (tower.num_patches + tower.class_token + tower.reg_tokens)
        inputs += itemsize * patches * tower.embed_dim * (tower.depth - 1)
        each = (1 + 8 * itemsize) * tower.embed_dim + 2 * itemsize * tower.mlp_hidden
        kept += patches * each * (tower.depth - 1)
    vision = sum(tower.embed_dim for tower in model.towers)
    projector = itemsize * images * model.num_patches * (14 * vision + 3 * dim)
    gradients = itemsize * tokens * (3 * dim + 3 * hidden)
    recomputed = {"inputs of blocks": inputs, "activations of a block": block}
    return (recomputed if placement.recomputed else {"activations of blocks": kept}) | {
        "projector's activations": projector,
        "embedding and last norm": 4 * itemsize * tokens * dim,
        "gradients in a block": gradients,
    }


def place(
    config: TrainerConfig, model: OpenVLAConfig, *, ranks: int, itemsize: int, memory_bytes: int
) -> Placement:
    """The fastest way to learn that the memory holds: frozen weights whole on each rank where that
    fits, then activations kept where that fits, too, with smaller micro-batches if need be. What
    the configuration says is done anyway.

    Args:
        config: the trainer's.
        model: the checkpoint's sizes.
        ranks: which learn together.
        itemsize: bytes of a number in the passes.
        memory_bytes: what a rank may take.
    """

    def fits(placement: Placement) -> bool:
        taken = tensors(config, model, placement, ranks=ranks, itemsize=itemsize)
        return sum(taken.values()) + ASIDE_BYTES <= memory_bytes

    again = config.activation_checkpointing
    sharded = config.sharding == "shard"
    if config.sharding == "auto":
        # Alone there is nobody to share with: gathering would only copy.
        sharded = ranks > 1 and not fits(Placement(sharded=False, recomputed=again is not False))
    bound = config.chosen.micro_batch_tokens
    if again != "auto":
        return Placement(sharded, again, bound)
    length = sequence_length(model)
    asked = _rows(config, length, bound)
    for rows in range(asked, 0, -1):
        kept = Placement(sharded, recomputed=False, most_tokens=rows * length)
        if rows < asked and rows * length < LEAST_TOKENS:
            break
        if fits(kept):
            return kept if rows < asked else Placement(sharded, recomputed=False, most_tokens=bound)
    return Placement(sharded, recomputed=True, most_tokens=bound)


def memory_bytes(config: TrainerConfig, ranks: Ranks) -> int:
    """What a rank may take: `trainer.memory_gib`, or half of its GPU, as policy server and
    simulators may lie there, too; on a CPU its part of half of the machine.
    """
    if config.memory_gib is not None:
        return int(config.memory_gib * GIB)
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory // 2
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return machine // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))


def _rows(config: TrainerConfig, length: int, most_tokens: int | None) -> int:
    """Samples of this length in a pass with gradient."""
    rows = config.chosen.micro_batch
    for bound in (config.chosen.micro_batch_tokens, most_tokens):
        if bound is not None:
            rows = min(rows, max(1, bound // length))
    return rows


def _critic_count(config: TrainerConfig, model: OpenVLAConfig) -> int:
    widths = [model.text.hidden_size + image_tokens(model) * config.critic.patch_channels]
    widths += [*config.critic.hidden, 1]
    return sum((a + 1) * b for a, b in pairwise(widths))
