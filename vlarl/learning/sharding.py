"""Models over the ranks: units of sharding, and tensors gathered and dealt out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vlarl.learning.ranks import World


def compute_dtype(
    choice: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """What the passes compute in; auto: bfloat16 on a GPU, float32 otherwise."""
    if choice == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if choice == "float32" else torch.bfloat16


def _blocks(model: nn.Module) -> Iterator[tuple[nn.ModuleList, int, nn.Module]]:
    """Every transformer block of the towers and the language model that the passes reach.

    The towers' last blocks are stored, but never computed: they have no factors, and a unit of
    sharding that never runs would break the accumulation of gradients.
    """
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for index, block in enumerate(stack):
            if any(parameter.requires_grad for parameter in block.parameters()):
                yield stack, index, block


def checkpoint_blocks(model: nn.Module) -> None:
    """Has every trained block compute its activations again in the backward pass."""
    for stack, index, block in _blocks(model):
        stack[index] = checkpoint_wrapper(block)


def shard(model: nn.Module, world: World, dtype: torch.dtype) -> None:
    """One unit of sharding a block, and one for the rest."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for _, _, block in _blocks(model):
        fully_shard(block, mesh=world.mesh, mp_policy=policy)
    fully_shard(model, mesh=world.mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Gradients add up; the loss is divided by the mini-batch's size instead.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
