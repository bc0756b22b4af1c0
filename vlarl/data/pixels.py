"""Batches of frames as the towers' inputs: augmented to learn from, as they are to measure on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlarl.config import AugmentationConfig
from vlarl.data.augmentation import IMAGE_DRAWS, augment, to_levels


def camera_draws(draws: Tensor, camera: int) -> Tensor:
    """Random numbers [B, IMAGE_DRAWS] of a camera's frames, by its number, among a sample's
    [B, DRAWS + FURTHER_DRAWS]: each camera is augmented differently, as in openvla-oft.
    """
    return draws[:, camera * IMAGE_DRAWS : (camera + 1) * IMAGE_DRAWS]


class Pixels:
    """The augmentation, and a checkpoint's normalisation after it, on the model's device."""

    def __init__(
        self,
        normalize: nn.Module | None,
        augmentation: AugmentationConfig,
        device: torch.device,
    ) -> None:
        """normalize: the checkpoint's, from levels, uint8 or float32 [B, S, S, 3], to the network's
        inputs; none: frames stay levels, for a processor to come.
        """
        self._normalize = normalize if normalize is None else normalize.to(device)
        self._augmentation = augmentation

    def plain(self, frames: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3 * towers, S, S], as the servers compute it; as it is
        where there is no normalisation.
        """
        normalized: Tensor = frames if self._normalize is None else self._normalize(frames)
        return normalized

    def augmented(self, frames: Tensor, draws: Tensor) -> Tensor:
        """The same, each frame augmented by its random numbers, the first of [B, M]."""
        images = frames.permute(0, 3, 1, 2).float() / 255
        augmented = augment(images, draws[:, :IMAGE_DRAWS], self._augmentation)
        levels = to_levels(augmented).permute(0, 2, 3, 1)
        return self.plain(levels.byte() if self._normalize is None else levels)
