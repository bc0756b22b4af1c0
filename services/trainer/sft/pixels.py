"""Batches of frames as the towers' inputs: augmented to learn from, as they are to measure on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from services.trainer.sft.augmentation import IMAGE_DRAWS, augment, to_levels
from vlarl.config import AugmentationConfig
from vlarl.openvla.images import PixelNormalizer


class Pixels:
    """A checkpoint's normalisation, and the augmentation before it, on the model's device."""

    def __init__(
        self, checkpoint: Path, augmentation: AugmentationConfig, device: torch.device
    ) -> None:
        """Raises ConfigError where the checkpoint's preprocessor can't be read."""
        normalizer = PixelNormalizer.from_directory(checkpoint)
        self._mean = torch.from_numpy(normalizer.mean).to(device)
        self._std = torch.from_numpy(normalizer.std).to(device)
        self._augmentation = augmentation

    def plain(self, frames: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3 * towers, S, S], as `PixelNormalizer` computes."""
        return self._normalized(frames.permute(0, 3, 1, 2).float())

    def augmented(self, frames: Tensor, draws: Tensor) -> Tensor:
        """The same, each frame augmented by its random numbers, the first of [B, DRAWS]."""
        images = frames.permute(0, 3, 1, 2).float() / 255
        augmented = augment(images, draws[:, :IMAGE_DRAWS], self._augmentation)
        return self._normalized(to_levels(augmented))

    def _normalized(self, levels: Tensor) -> Tensor:
        return ((levels[:, None] / 255 - self._mean) / self._std).flatten(1, 2)
