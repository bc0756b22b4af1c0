"""OpenVLA's image augmentation on batches of tensors, by TensorFlow's conventions.

The order is OpenVLA's: crop, brightness, contrast, saturation, hue, each clipped to [0, 1], then
back to 8 bits as ``convert_image_dtype`` does. Every random number comes in from outside.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vlarl.config import AugmentationConfig
from vlarl.images import CENTER_CROP_AREA

IMAGE_DRAWS = 6
"""Random numbers that one image takes: top, left, brightness, contrast, saturation, hue."""


def augment(images: Tensor, draws: Tensor, config: AugmentationConfig) -> Tensor:
    """Augmented images [B, 3, S, S] in [0, 1].

    Args:
        images: float32 [B, 3, S, S] in [0, 1].
        draws: float32 [B, IMAGE_DRAWS], uniform in [0, 1).
        config: what is on, and how strong.
    """
    top, left, *colours = draws.unbind(dim=1)
    if config.random_crop:
        images = crop(images, top, left)
    # From [0, 1) to [-1, 1), a column an image.
    shift, contrast, saturation, hue = (2 * draw[:, None, None, None] - 1 for draw in colours)
    if config.brightness:
        images = (images + config.brightness * shift).clamp(0, 1)
    if config.contrast:
        mean = images.mean(dim=(2, 3), keepdim=True)
        images = ((images - mean) * (1 + config.contrast * contrast) + mean).clamp(0, 1)
    if config.saturation:
        images = scale_saturation(images, 1 + config.saturation * saturation)
    if config.hue:
        images = turn_hue(images, config.hue * hue)
    return images


def crop(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Crops 90 % of each image's area and stretches it back to the image's size, bilinearly.

    ``tf.image.crop_and_resize``: sample positions are spaced evenly from corner to corner.

    Args:
        images: [B, 3, S, S].
        top: [B], where the crop begins: 0 at the first row, 0.5 centred, 1 at the last possible.
        left: [B], the same along the columns.
    """
    size = images.shape[-1]
    side = math.sqrt(CENTER_CROP_AREA)
    across = side * torch.linspace(0.0, 1.0, size, device=images.device)
    rows = (1 - side) * top[:, None] + across
    columns = (1 - side) * left[:, None] + across
    grid = torch.stack(
        [columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], dim=-1
    )
    return F.grid_sample(
        images, 2 * grid - 1, mode="bilinear", padding_mode="border", align_corners=True
    )


def scale_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies HSV's saturation, keeping hue and value; factor [B, 1, 1, 1]."""
    value = images.amax(dim=1, keepdim=True)
    spread = value - images.amin(dim=1, keepdim=True)
    # Saturation is spread / value and ends at 1.
    bounded = torch.minimum(factor, value / spread.clamp(min=1e-7))
    return value - (value - images) * bounded


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Adds to HSV's hue, keeping saturation and value; turns [B, 1, 1, 1], 1 all the way round."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    value = images.amax(dim=1, keepdim=True)
    spread = value - images.amin(dim=1, keepdim=True)
    safe = spread.clamp(min=1e-7)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Smith's closed form of the way back: a channel is value - spread * max(0, min(k, 4 - k, 1)).
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device)[None, :, None, None]
    k = (offsets + hue + 6 * turns) % 6
    return value - spread * torch.minimum(k, 4 - k).clamp(0, 1)


def to_levels(images: Tensor) -> Tensor:
    """Images in [0, 1] as whole levels 0 to 255, float32: ``convert_image_dtype`` truncates."""
    return (images * 255.5).clamp(max=255.0).floor()
