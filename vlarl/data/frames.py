"""Frames of demonstrations as pixels, decoded while the model computes and kept where they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vlarl.images import Frame


class FrameStore:
    """N encoded frames. Those that fit into the memory given are decoded once, the rest each time
    they are asked for.
    """

    def __init__(
        self,
        encoded: Sequence[bytes],
        decode: Callable[[bytes], Frame],
        size: int,
        cache_bytes: int,
    ) -> None:
        """decode: gives uint8 [size, size, 3]."""
        self._encoded = encoded
        self._decode = decode
        kept = min(len(encoded), cache_bytes // (3 * size * size))
        # Pages that nobody has written to cost nothing yet.
        self._kept = np.empty((kept, size, size, 3), dtype=np.uint8)
        self._decoded = np.zeros(kept, dtype=np.bool_)
        # Decoding and resizing release the interpreter's lock for most of their time.
        self._threads = ThreadPoolExecutor(thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._encoded)

    @property
    def kept_bytes(self) -> int:
        """Memory that decoded frames may come to take."""
        return self._kept.nbytes

    def __getitem__(self, chosen: NDArray[np.int64]) -> Frame:
        """Pixels uint8 [B, size, size, 3] of frames by number.

        Raises:
            ImageError: one of them is no image.
        """
        kept = chosen < len(self._kept)
        missing = np.unique(chosen[kept][~self._decoded[chosen[kept]]])
        if len(missing):
            self._kept[missing] = self._decode_all(missing)
            self._decoded[missing] = True
        frames = np.empty((len(chosen), *self._kept.shape[1:]), dtype=np.uint8)
        frames[kept] = self._kept[chosen[kept]]
        if not kept.all():
            frames[~kept] = self._decode_all(chosen[~kept])
        return frames

    def _decode_all(self, chosen: NDArray[np.int64]) -> Frame:
        encoded = [self._encoded[number] for number in chosen]
        return np.stack(list(self._threads.map(self._decode, encoded)))
