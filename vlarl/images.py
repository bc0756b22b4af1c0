"""From a camera frame to the model's pixels, by the steps that the checkpoints were trained with.

The frame is JPEG-coded once, where it was taken; everybody decodes the same bytes with this code
and so sees the same pixels. ``docs/openvla.md`` lists how far each step is from TensorFlow's.
No step depends on the machine, the number of threads or the order of a sum: the resize is exact
(docs/decisions/0005), the crop works on one element at a time.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Frame = NDArray[np.uint8]
"""An RGB image, uint8[height, width, 3]."""

MAX_IMAGE_PIXELS = 4096 * 4096
MAX_IMAGE_BYTES = 32 * 1024 * 1024
JPEG_QUALITY = 95
CENTER_CROP_AREA = 0.9
"""Share of the area that the centre crop keeps: what the random crops of training kept."""

_BAND_ROWS = 32
_LANCZOS_RADIUS = 3.0
_WEIGHT_UNIT = 2.0**-21
"""Lanczos weights are whole multiples of it. Two passes over 8-bit pixels then need 8 + 2 * 21 bits
and a sign, and another for overshoots: all products and sums are exact in float64's 53."""
_JPEG_START = b"\xff\xd8"
_JPEG_COLOURS = {"YCbCr", "RGB", "Gray"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(ValueError):
    """Bytes or an array that can't be taken as an observation's image."""


def decode_image(encoded: bytes) -> Frame:
    """Decode a JPEG or PNG; its size is checked before any pixel is decoded.

    A sound JPEG becomes what ``tf.io.decode_jpeg`` makes of it, to the bit: libjpeg's fast inverse
    transform (docs/decisions/0013). PNGs and what is odd about a JPEG are Pillow's to judge.

    Raises:
        ImageError: not an 8-bit JPEG or PNG, broken, cut short, or too large.
    """
    if len(encoded) > MAX_IMAGE_BYTES:
        raise ImageError(f"an image may have {MAX_IMAGE_BYTES} bytes, this has {len(encoded)}")
    decoded = _decode_sound_jpeg(encoded)
    return _decode_by_pillow(encoded) if decoded is None else decoded


def _decode_sound_jpeg(encoded: bytes) -> Frame | None:
    """None where these bytes are no JPEG, or one that libjpeg warns of."""
    if not encoded.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        _require_few_pixels(width, height)
        if colours not in _JPEG_COLOURS:
            return None
        frame: Frame = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True, fastupsample=False)
    except ImageError:
        raise
    except ValueError:
        return None
    return frame


def _decode_by_pillow(encoded: bytes) -> Frame:
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            _require_few_pixels(image.width, image.height)
            if image.mode not in _EIGHT_BIT_MODES:
                raise ImageError(f"an image has 8 bits a channel, this has mode {image.mode}")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its text has the buffer's address, and no more
        raise ImageError("cannot decode the image: neither a JPEG nor a PNG") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"cannot decode the image: {error}") from error


def _require_few_pixels(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError(f"an image may have {MAX_IMAGE_PIXELS} pixels, this has {width}x{height}")


def encode_jpeg(frame: Frame) -> bytes:
    """Encode a frame as the training data was: JPEG, quality 95, chroma halved (4:2:0).

    Raises:
        ImageError: the frame isn't uint8[height, width, 3].
    """
    _require_frame(frame)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def prepare_image(frame: Frame, size: int, center_crop: bool) -> Frame:
    """A frame as the model sees it, uint8[size, size, 3].

    A frame of another size is resized (a plain, not an aspect-preserving resize); one of the
    right size is used as it is.

    Raises:
        ImageError: the frame isn't uint8[height, width, 3].
    """
    _require_frame(frame)
    if frame.shape[:2] != (size, size):
        frame = lanczos_resize(frame, size)
    return _crop(frame) if center_crop else frame


def lanczos_resize(frame: Frame, size: int) -> Frame:
    """Resize to size x size as ``tf.image.resize(method="lanczos3", antialias=True)`` does.

    Half-pixel centres, the kernel widened when shrinking and renormalised at the borders; then
    rounded half to even and clipped to uint8.
    """
    rows = _resize_rows(frame.astype(np.float64), size)
    resized = _resize_rows(np.ascontiguousarray(rows.swapaxes(0, 1)), size)
    np.clip(np.rint(resized, out=resized), 0, 255, out=resized)
    return resized.astype(np.uint8).swapaxes(0, 1)


def center_crop(frame: Frame) -> Frame:
    """Crop the central 90 % of the area, resized back bilinearly to the frame's own size.

    TensorFlow's ``crop_and_resize``: sample positions are spaced evenly from corner to corner of
    the box (not half-pixel centres), between ``convert_image_dtype`` to [0, 1] and back, which
    truncates ``255.5 * x``.
    """
    rows = _crop_rows(frame.astype(np.float32) / np.float32(255))
    cropped = _crop_rows(np.ascontiguousarray(rows.swapaxes(0, 1)))
    np.minimum(np.multiply(cropped, np.float32(255.5), out=cropped), 255, out=cropped)
    return cropped.astype(np.uint8).swapaxes(0, 1)


_crop = center_crop  # `prepare_image` has an argument of that name.


def _require_frame(frame: Frame) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ImageError(
            f"a frame is uint8[height, width, 3], this is {frame.dtype}{list(frame.shape)}"
        )


def _resize_rows(image: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """Resize an image [height, ...] along its first axis."""
    flat = image.reshape(len(image), -1)
    resized = np.empty((target, flat.shape[1]))
    for first, above, weights in _lanczos_bands(len(image), target):
        source = flat[above : above + weights.shape[1]]
        np.matmul(weights, source, out=resized[first : first + len(weights)])
    return resized.reshape(target, *image.shape[1:])


@functools.lru_cache(maxsize=32)
def _lanczos_bands(source: int, target: int) -> list[tuple[int, int, NDArray[np.float64]]]:
    """`_lanczos_weights` in bands of rows, each without the columns in which it is 0.

    Returns:
        For each band its first row, its first column, and its weights.
    """
    whole = _lanczos_weights(source, target)
    bands = []
    for first in range(0, target, _BAND_ROWS):
        rows = whole[first : first + _BAND_ROWS]
        used = np.flatnonzero(rows.any(axis=0))
        bands.append((first, int(used[0]), np.ascontiguousarray(rows[:, used[0] : used[-1] + 1])))
    return bands


def _lanczos_weights(source: int, target: int) -> NDArray[np.float64]:
    """Weights [target, source] of one direction of the resize: whole multiples of `_WEIGHT_UNIT`,
    each row of which sums to 1.
    """
    scale = source / target
    widening = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centers[:, None]) / widening
    # numpy's sinc is the normalised one, sin(pi x) / (pi x).
    kernel = np.sinc(distance) * np.sinc(distance / _LANCZOS_RADIUS)
    kernel[distance > _LANCZOS_RADIUS] = 0.0
    units = np.rint(kernel / kernel.sum(axis=1, keepdims=True) / _WEIGHT_UNIT)
    # What rounding took from the sum goes to the largest weight: a plain frame stays as it is.
    units[np.arange(target), units.argmax(axis=1)] += 1 / _WEIGHT_UNIT - units.sum(axis=1)
    return np.asarray(units * _WEIGHT_UNIT)


def _crop_rows(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Crop and stretch an image [height, ...] along its first axis."""
    size = len(unit)
    side = np.sqrt(CENTER_CROP_AREA)
    positions = ((1 - side) / 2 + side * np.linspace(0.0, 1.0, size)) * (size - 1)
    below = np.floor(positions).astype(np.int64)
    above = np.minimum(below + 1, size - 1)
    near: NDArray[np.float32] = unit[below]
    far: NDArray[np.float32] = unit[above]
    far -= near
    far *= (positions - below).astype(np.float32)[:, None, None]
    far += near
    return far
