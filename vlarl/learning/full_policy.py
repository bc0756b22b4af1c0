"""OpenVLA with all of its weights trained, those apart that the forward pass never uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vlarl.learning.ranks import World
from vlarl.learning.sharding import checkpoint_blocks, shard
from vlarl.models.openvla.network import OpenVLA, load_model
from vlarl.models.openvla.tensors import unused_prefixes
from vlarl_trainer.observations import ObservationBatch

_WRAPPER = "_checkpoint_wrapped_module."


class FullPolicy:
    """The policy, sharded over the ranks; the optimizer's copy is float32."""

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: torch.dtype,
        world: World,
        activation_checkpointing: bool = False,
    ) -> None:
        """dtype: of the passes, where the model is sharded."""
        self._model = trainable_model(checkpoint, world.device)
        if activation_checkpointing:
            checkpoint_blocks(self._model)
        if world.mesh is not None:
            shard(self._model, world, dtype)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their keys in the checkpoint."""
        return trained_parameters(self._model)

    def logits(
        self, observations: ObservationBatch, token_ids: Tensor, answer_ids: Sequence[int] = ()
    ) -> Tensor:
        """Logits [B, K, 256] over the action ids, given action tokens (int64 [B, K]); or, after
        0 to K of them, over the answers [B, K + 1, A].
        """
        output = self._model(
            observations.pixel_values,
            observations.prompt_ids,
            observations.prompt_lengths,
            token_ids,
            answer_ids,
        )
        logits: Tensor = output.logits
        return logits

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(on)


def trainable_model(checkpoint: Path, device: torch.device) -> OpenVLA:
    """A checkpoint's model in float32; what the passes never use is frozen."""
    model = load_model(checkpoint, torch.float32, device)
    unused = unused_prefixes(model.config)
    for name, parameter in model.named_parameters():
        # Memory of its own, aligned alike in every process: the file's may lie anywhere, and the
        # order of a product's sums, so its last bit, may depend on where.
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(not name.startswith(unused))
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; the names don't tell which blocks are wrapped."""
    return {
        name.replace(_WRAPPER, ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
