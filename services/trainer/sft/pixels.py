"""Batches of frames as the towers' inputs: augmented to learn from, as they are to measure on."""

from __future__ import annotations

import torch
from torch import Tensor

from services.trainer.sft.augmentation import IMAGE_DRAWS, augment, to_levels
from vlarl.config import AugmentationConfig
from vlarl.openvla.images import PixelNormalizer


class Pixels:
    """The augmentation, and a checkpoint's normalisation after it, on the model's device."""

    def __init__(
        self,
        normalizer: PixelNormalizer | None,
        augmentation: AugmentationConfig,
        device: torch.device,
    ) -> None:
        """normalizer: the checkpoint's; none: frames stay levels, for a processor to come."""
        self._moments: tuple[Tensor, Tensor] | None = None
        if normalizer is not None:
            mean, std = (torch.from_numpy(one) for one in (normalizer.mean, normalizer.std))
            self._moments = mean.to(device), std.to(device)
        self._augmentation = augmentation

    def plain(self, frames: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3 * towers, S, S], as `PixelNormalizer` computes; as
        it is where there is none.
        """
        return self._normalized(frames.permute(0, 3, 1, 2).float())

    def augmented(self, frames: Tensor, draws: Tensor) -> Tensor:
        """The same, each frame augmented by its random numbers, the first of [B, DRAWS]."""
        images = frames.permute(0, 3, 1, 2).float() / 255
        augmented = augment(images, draws[:, :IMAGE_DRAWS], self._augmentation)
        return self._normalized(to_levels(augmented))

    def _normalized(self, levels: Tensor) -> Tensor:
        if self._moments is None:
            return levels.byte().permute(0, 2, 3, 1)
        mean, std = self._moments
        return ((levels[:, None] / 255 - mean) / std).flatten(1, 2)
