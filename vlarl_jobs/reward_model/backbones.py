"""Networks that become reward models: OpenVLA, or an image-text model of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from vlarl.config import RewardModelConfig
from vlarl.data.pixels import Pixels
from vlarl.data.pool import Reading
from vlarl.learning.export import export_checkpoint
from vlarl.learning.ranks import Ranks
from vlarl.learning.trainable import load_learner
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import is_openvla, policy_family, policy_spec
from vlarl_jobs.reward_model.image_text import (
    ImageTextBackbone,
    ImageTextProcessor,
    export_image_text,
)


class Backbone(Protocol):
    """What the objective needs of a model."""

    pixels: Pixels
    """The way from frames to its inputs."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by the names that checkpoints give them."""

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""

    def verdicts(self, observations: ObservationBatch, token_ids: Tensor) -> Tensor:
        """Logits [B, K + 1, 2] that 0 to K action tokens (int64 [B, K]) lead nowhere, somewhere."""


class OpenVLABackbone:
    """The policy's own architecture."""

    def __init__(self, config: RewardModelConfig, ranks: Ranks) -> None:
        """Loads the checkpoint."""
        family = policy_family(config.checkpoint)
        self.pixels = Pixels(family.tower_pixels(), config.augmentation, ranks.device)
        self._answers = family.verdict_ids()
        self._model = load_learner(config, config.checkpoint, ranks)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._model.named_parameters()

    def synchronise_gradients(self, on: bool) -> None:
        self._model.synchronise_gradients(on)

    def verdicts(self, observations: ObservationBatch, token_ids: Tensor) -> Tensor:
        return self._model.logits(observations, token_ids, self._answers)


def load_backbone(config: RewardModelConfig, ranks: Ranks) -> Backbone:
    """The model that a run trains.

    Raises:
        ConfigError, CheckpointError: it can't be loaded.
    """
    kind = OpenVLABackbone if is_openvla(config.checkpoint) else ImageTextBackbone
    return kind(config, ranks)


def reading(config: RewardModelConfig, *, center_crop: bool) -> Reading:
    """How the run's model reads frames and instructions.

    Raises:
        ConfigError: the checkpoint's processor can't be loaded.
    """
    if is_openvla(config.checkpoint):
        return policy_family(config.checkpoint).processor(center_crop)
    return ImageTextProcessor(config.checkpoint, policy_spec(config.scored_policy), center_crop)


def export(
    config: RewardModelConfig,
    target: Path,
    weights: dict[str, Tensor],
    finish: Callable[[Path], None],
) -> None:
    """Writes a trained model's checkpoint; `finish` adds to the folder before it appears."""
    if is_openvla(config.checkpoint):
        export_checkpoint(
            config.checkpoint,
            target,
            weights,
            lora=config.lora if config.mode == "lora" else None,
            center_crop=config.augmentation.random_crop,
            finish=finish,
        )
    else:
        export_image_text(config, target, weights, finish)
