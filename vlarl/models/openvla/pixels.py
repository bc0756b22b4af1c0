"""Prepared frames as the towers' inputs. `vision.TowerPixels` does the same in torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlarl.errors import ConfigError
from vlarl.images import Frame
from vlarl.weights.folder import read_json


class PixelNormalizer:
    """Normalises a prepared frame once for each tower and stacks the results on channels.

    ``mean`` and ``std`` are float32[towers, 3, 1, 1]. ``levels``, float32[3 * towers, 256], has
    what becomes of each of a pixel's values.
    """

    def __init__(self, means: NDArray[np.float64], stds: NDArray[np.float64]) -> None:
        """``means`` and ``stds`` are [towers, 3]."""
        self.mean = means.astype(np.float32)[..., None, None]
        self.std = stds.astype(np.float32)[..., None, None]
        values = np.arange(256, dtype=np.float32) / np.float32(255)
        self.levels = ((values - self.mean[..., 0]) / self.std[..., 0]).reshape(-1, 256)

    @classmethod
    def from_directory(cls, checkpoint: str | Path) -> PixelNormalizer:
        """Read the numbers of ``preprocessor_config.json``, rounded to bfloat16 as they are there.

        Raises:
            ConfigError: the file is missing or has no ``tvf_normalize_params``.
        """
        path = Path(checkpoint) / "preprocessor_config.json"
        if not os.path.lexists(path):
            raise ConfigError(
                f"{path} is missing: copy it from the checkpoint that this one was made of"
            )
        try:
            towers = read_json(path)["tvf_normalize_params"]
            means = np.array([tower["mean"] for tower in towers], dtype=np.float64)
            stds = np.array([tower["std"] for tower in towers], dtype=np.float64)
            means, stds = means.reshape(len(towers), 3), stds.reshape(len(towers), 3)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"cannot read {path}: {error!r}") from error
        if not np.isfinite(means).all() or not (np.isfinite(stds) & (stds > 0)).all():
            raise ConfigError(f"{path}: tvf_normalize_params need finite means, deviations above 0")
        return cls(means, stds)

    def __call__(self, frames: Frame) -> NDArray[np.float32]:
        """uint8[..., S, S, 3] -> float32[..., 3 * towers, S, S], DINOv2's channels first."""
        *outer, height, width, colours = frames.shape
        stacked = np.empty((*outer, len(self.levels), height, width), np.float32)
        for channel, levels in enumerate(self.levels):
            # No index is out of range; "clip" spares looking for one.
            looked_up = np.take(levels, frames[..., channel % colours], mode="clip")
            stacked[..., channel, :, :] = looked_up
        return stacked
