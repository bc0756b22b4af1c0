"""Prepared frames as the towers' inputs, computed on the device that the towers are on: a frame's
bytes are an eighth of its two towers' inputs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vlarl.images import PixelNormalizer

_FEW = 4
"""Frames that a CPU normalises at once."""


class TowerPixels(nn.Module):
    """What `PixelNormalizer` computes, to the bit, for a batch in torch."""

    def __init__(self, checkpoint: str | Path) -> None:
        """Reads the numbers of ``preprocessor_config.json``.

        Raises:
            ConfigError: the file is missing or can't be used.
        """
        super().__init__()
        numbers = PixelNormalizer.from_directory(checkpoint)
        self._mean: Tensor
        self._deviation: Tensor
        self._white: Tensor
        # CUDA multiplies by a rounded reciprocal where it is to divide by a plain number, so white
        # is a tensor. All stay float32 whatever the model's type is.
        self.register_buffer("_mean", torch.tensor(numbers.mean), persistent=False)
        self.register_buffer("_deviation", torch.tensor(numbers.std), persistent=False)
        white = torch.tensor(255, dtype=torch.float32)
        self.register_buffer("_white", white, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Whole levels, uint8 or float32 [B, S, S, 3] -> float32 [B, 3 * towers, S, S]."""
        planes = frames.permute(0, 3, 1, 2)
        towers = self._mean.new_empty(len(planes), *self._mean.shape[:2], *planes.shape[2:])
        # A core is twice as fast on what its cache holds; a GPU has no use for small parts.
        few = _FEW if planes.device.type == "cpu" else max(1, len(planes))
        for levels, part in zip(torch.split(planes, few), torch.split(towers, few), strict=True):
            unit = levels.float() / self._white
            torch.sub(unit[:, None], self._mean, out=part).div_(self._deviation)
        return towers.flatten(1, 2)
