"""From a frame and an instruction to what the network computes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vlarl.images import Frame, decode_image, prepare_image
from vlarl.models.network import ObservationBatch
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.network import pad_prompts
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.openvla.vision import TowerPixels


class Preparation:
    """The checkpoint's way from an encoded frame and an instruction to inputs."""

    def __init__(self, checkpoint: Path, config: OpenVLAConfig, center_crop: bool) -> None:
        self._size = config.image_size
        self.pad_id = config.pad_token_id
        self._center_crop = center_crop
        self._prompts = PromptBuilder(checkpoint)
        self._pixels = TowerPixels(checkpoint)

    def frame(self, encoded: bytes) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Raises:
            ImageError: the bytes are no image.
        """
        return prepare_image(decode_image(encoded), self._size, self._center_crop)

    def prompt(self, instruction: str) -> list[int]:
        """Prompt ids, "▁" last."""
        return self._prompts.token_ids(instruction)

    def batch(
        self, frames: NDArray[np.uint8], prompts: Sequence[Sequence[int]], device: torch.device
    ) -> ObservationBatch:
        """Inputs from prepared frames [B, S, S, 3] and prompt ids."""
        pixels = self._pixels.to(device)(torch.from_numpy(frames).to(device))
        ids, lengths = pad_prompts(prompts, self.pad_id, device)
        return ObservationBatch(pixels, ids, lengths)
