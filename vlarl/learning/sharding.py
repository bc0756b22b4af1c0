"""Models over the ranks: units of sharding, and what the passes compute in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vlarl.learning.ranks import Ranks
from vlarl.weights.merge import DTYPES


def compute_dtype(
    choice: Literal["auto", "float32", "bfloat16", "float16"],
    device: torch.device,
    on_gpu: torch.dtype = torch.bfloat16,
) -> torch.dtype:
    """What the passes compute in; auto: `on_gpu` on a GPU, float32 otherwise."""
    if choice == "auto":
        return on_gpu if device.type == "cuda" else torch.float32
    return DTYPES[choice]


def _blocks(model: nn.Module) -> Iterator[tuple[nn.ModuleList, int, nn.Module]]:
    """Every transformer block of the towers and the language model that the passes reach.

    The towers' last blocks are stored, but never computed. Nothing in them is trained, and a unit
    of sharding that never runs would break the accumulation of gradients.
    """
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for index, block in enumerate(stack):
            if any(parameter.requires_grad for parameter in block.parameters()):
                yield stack, index, block


def distribute(
    model: nn.Module,
    ranks: Ranks,
    dtype: torch.dtype,
    *,
    activation_checkpointing: bool,
    sharded: bool = True,
) -> None:
    """Prepares a model to learn on all ranks.

    Args:
        model: its trained parameters require gradients, the others don't.
        ranks: where there are several, or a GPU, one unit of sharding a block and one for the rest.
        dtype: of the passes, where the model is sharded.
        activation_checkpointing: whether every trained block computes its activations again in the
            backward pass.
        sharded: whether each rank holds a part. Else each holds the whole model, in the types that
            it has, and the optimizer adds gradients up over the ranks.
    """
    if activation_checkpointing:
        for stack, index, block in _blocks(model):
            stack[index] = checkpoint_wrapper(block)
    if sharded and ranks.mesh is not None:
        _shard(model, ranks.mesh, dtype)


def synchronise_gradients(model: nn.Module, on: bool) -> None:
    """Whether the next backward pass adds gradients up over the ranks, or only locally."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(on)


def _shard(model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for _, _, block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Gradients add up; the loss is divided by the mini-batch's size instead.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
