"""Contact sheets and videos of demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vlarl.errors import FatalError
from vlarl.images import Frame

SHEET_COLUMNS = 8
"""Moments of an episode that a contact sheet shows, the first and the last among them."""

_SMALLEST_SIDE = 256
_GAP = 2


class VideoError(FatalError):
    """OpenCV can't write the video."""


def contact_sheet(episodes: Sequence[Sequence[Frame]]) -> Frame:
    """An episode a row, `SHEET_COLUMNS` moments each, on white; all frames are of one size."""
    height, width = episodes[0][0].shape[:2]
    size = (len(episodes) * (height + _GAP), SHEET_COLUMNS * (width + _GAP), 3)
    sheet: Frame = np.full(size, 255, dtype=np.uint8)
    for row, frames in enumerate(episodes):
        moments = np.linspace(0, len(frames) - 1, SHEET_COLUMNS).round().astype(int)
        for column, moment in enumerate(moments):
            top, left = row * (height + _GAP), column * (width + _GAP)
            sheet[top : top + height, left : left + width] = frames[moment]
    return sheet


def write_picture(path: Path, frame: Frame) -> None:
    """As PNG or JPEG, by the ending of the name."""
    Image.fromarray(frame).save(path)


def write_video(path: Path, frames: Sequence[Frame], rate: float) -> None:
    """As mp4; small frames are enlarged.

    Args:
        path: The file.
        frames: All of one size.
        rate: Frames a second.

    Raises:
        VideoError: OpenCV has no encoder for it here.
    """
    height, width = frames[0].shape[:2]
    scale = max(1, -(-_SMALLEST_SIDE // min(height, width)))
    # The codec wants even sides.
    size = (width * scale // 2 * 2, height * scale // 2 * 2)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        raise VideoError(f"OpenCV can't write {path}: it has no mp4 encoder here")
    for frame in frames:
        larger = cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST)
        writer.write(cv2.cvtColor(larger, cv2.COLOR_RGB2BGR))
    writer.release()
