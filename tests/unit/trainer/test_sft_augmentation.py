"""Augmentation against the server's own crop, Python's colorsys, and TensorFlow's formulas."""

import colorsys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vlarl.config import AugmentationConfig  # noqa: E402
from vlarl.data.augmentation import (  # noqa: E402
    augment,
    crop,
    scale_saturation,
    to_levels,
    turn_hue,
)
from vlarl.data.pixels import Pixels  # noqa: E402
from vlarl.images import center_crop  # noqa: E402
from vlarl.models.openvla.pixels import PixelNormalizer  # noqa: E402
from vlarl.models.openvla.vision import TowerPixels  # noqa: E402

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parents[2] / "golden"
OFF = AugmentationConfig(random_crop=False, brightness=0, contrast=0, saturation=0, hue=0)


def some_frames(count: int = 2, size: int = 84) -> np.ndarray:
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 256, (count, size // 6, size // 6, 3), np.uint8)
    return coarse.repeat(6, axis=1).repeat(6, axis=2)


def as_images(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def test_the_crop_in_the_middle_is_the_servers_centre_crop() -> None:
    frames = some_frames()
    half = torch.full((len(frames),), 0.5)
    got = to_levels(crop(as_images(frames), half, half)).permute(0, 2, 3, 1).numpy()
    expected = np.stack([center_crop(frame) for frame in frames]).astype(np.float32)
    difference = np.abs(got - expected)
    # float32 may round a value to the other side of a level.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert np.abs(expected - frames).mean() > 1, "the crop changes these frames"


def test_a_random_crop_shows_a_part_of_the_frame_from_corner_to_corner() -> None:
    size = 60
    ramp = torch.linspace(0, 1, size)
    images = torch.stack([ramp[:, None].expand(-1, size), ramp[None].expand(size, -1)])
    images = torch.cat([images, torch.zeros(1, size, size)])[None].expand(4, -1, -1, -1)
    top, left = torch.tensor([0.0, 1.0, 0.3, 0.5]), torch.tensor([0.0, 1.0, 0.9, 0.5])
    got = crop(images, top, left)
    side = 0.9**0.5
    for number in range(4):
        first_row, first_column = (1 - side) * float(top[number]), (1 - side) * float(left[number])
        for channel, first in ((0, first_row), (1, first_column)):
            across = got[number, channel].movedim(channel, 0)
            assert across[0].numpy() == pytest.approx(first, abs=1e-5)
            assert across[-1].numpy() == pytest.approx(first + side, abs=1e-5)


def test_saturation_and_hue_are_those_of_colorsys() -> None:
    rng = np.random.default_rng(2)
    colours = rng.random((50, 3)).astype(np.float32)
    colours[0], colours[1], colours[2] = 0.5, (0.7, 0.7, 0.2), 0.0
    factors = torch.from_numpy(rng.uniform(0.5, 2, 50).astype(np.float32))
    turns = torch.from_numpy(rng.uniform(-0.5, 0.5, 50).astype(np.float32))
    images = torch.from_numpy(colours)[:, :, None, None]
    saturated = scale_saturation(images, factors[:, None, None, None])[..., 0, 0]
    turned = turn_hue(images, turns[:, None, None, None])[..., 0, 0]
    for number, colour in enumerate(colours):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, colour))
        bounded = min(1.0, saturation * float(factors[number]))
        expected = colorsys.hsv_to_rgb(hue, bounded, value)
        assert saturated[number].tolist() == pytest.approx(expected, abs=1e-5)
        expected = colorsys.hsv_to_rgb((hue + float(turns[number])) % 1, saturation, value)
        assert turned[number].tolist() == pytest.approx(expected, abs=1e-5)


def test_brightness_and_contrast_follow_tensorflow() -> None:
    images = as_images(some_frames())
    draws = torch.full((2, 6), 0.5)
    draws[0, 2], draws[1, 3] = 1.0, 0.0
    config = OFF.model_copy(update={"brightness": 0.2, "contrast": 0.3})
    got = augment(images, draws, config)
    torch.testing.assert_close(got[0], (images[0] + 0.2).clamp(0, 1))
    mean = images[1].mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(got[1], ((images[1] - mean) * 0.7 + mean).clamp(0, 1))


def test_the_middle_of_every_range_changes_nothing_but_the_crop() -> None:
    images = as_images(some_frames())
    draws = torch.full((2, 6), 0.5)
    half = draws[:, 0]
    got = augment(images, draws, AugmentationConfig())
    torch.testing.assert_close(got, crop(images, half, half), atol=1e-5, rtol=0)
    assert torch.equal(augment(images, draws, OFF), images)


def test_pixels_are_the_servers_to_the_bit() -> None:
    checkpoint = GOLDEN / "openvla-tiny"
    frames = some_frames(size=42)
    pixels = Pixels(TowerPixels(checkpoint), OFF, torch.device("cpu"))
    expected = PixelNormalizer.from_directory(checkpoint)(frames)
    assert np.array_equal(pixels.plain(torch.from_numpy(frames)).numpy(), expected)
    augmented = pixels.augmented(torch.from_numpy(frames), torch.rand(2, 6))
    assert np.array_equal(augmented.numpy(), expected), "8-bit levels come back as they were"
