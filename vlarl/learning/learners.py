"""Which part of a model learns: all of it, or LoRA factors beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from vlarl.config import LoraConfig
from vlarl.learning.full_policy import FullPolicy
from vlarl.learning.ranks import World
from vlarl.learning.sharding import compute_dtype
from vlarl.learning.trainable import LoraPolicy
from vlarl_trainer.observations import ObservationBatch


class LearnerConfig(Protocol):
    """What a run's configuration says about it."""

    @property
    def mode(self) -> Literal["full", "lora"]: ...
    @property
    def dtype(self) -> Literal["auto", "float32"]: ...
    @property
    def seed(self) -> int: ...
    @property
    def lora(self) -> LoraConfig: ...
    @property
    def activation_checkpointing(self) -> bool: ...


class Model(Protocol):
    """What an objective needs of a model, whichever part of it learns."""

    def logits(
        self, observations: ObservationBatch, token_ids: Tensor, answer_ids: Sequence[int] = ()
    ) -> Tensor:
        """Logits [B, K, 256] over the action ids, given action tokens (int64 [B, K]); or, after
        0 to K of them, over the answers [B, K + 1, A].
        """

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""


def load_learner(
    config: LearnerConfig, checkpoint: Path, world: World
) -> tuple[Model, dict[str, nn.Parameter]]:
    """A checkpoint's model, and its trained parameters by the names that checkpoints give them."""
    dtype = compute_dtype(config.dtype, world.device)
    if config.mode == "full":
        full = FullPolicy(
            checkpoint,
            dtype=dtype,
            world=world,
            activation_checkpointing=config.activation_checkpointing,
        )
        return full, full.named_parameters()
    adapted = LoraPolicy(
        checkpoint,
        config.lora,
        dtype=dtype,
        seed=config.seed,
        world=world,
        activation_checkpointing=config.activation_checkpointing,
    )
    return adapted, adapted.named_factors()
