"""A batch's states as the model's inputs, each frame decoded once on each rank that needs it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlarl.images import Frame, ImageError, decode_image, prepare_image
from vlarl.learning.ranks import Indices
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.network import pad_prompts
from vlarl.models.openvla.pixels import TowerPixels
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl_trainer.batch import TrajectoryError


@dataclass(frozen=True)
class ObservationBatch:
    """B observations on the model's device."""

    pixel_values: Tensor
    """float32 [B, 3 * towers, S, S]."""
    prompt_ids: Tensor
    """int64 [B, L], padded on the right."""
    prompt_lengths: Tensor
    """int64 [B]."""


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


class Observations:
    """The states of one batch."""

    def __init__(
        self,
        frames: Sequence[bytes],
        instructions: Sequence[str],
        preparation: Preparation,
        device: torch.device,
    ) -> None:
        """frames, instructions: [S], encoded images and what the policy was told."""
        self._encoded = frames
        self._prepared: dict[int, Frame] = {}
        self._preparation = preparation
        self._device = device
        known = {text: preparation.prompt(text) for text in set(instructions)}
        self._prompts = [known[text] for text in instructions]

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, states: Indices) -> ObservationBatch:
        """Inputs of these states."""
        missing = sorted({int(state) for state in states} - self._prepared.keys())
        # Decoding and resizing release the interpreter's lock for most of their time.
        with ThreadPoolExecutor() as threads:
            encoded = [self._encoded[state] for state in missing]
            try:
                frames = list(threads.map(self._preparation.frame, encoded))
            except ImageError as error:
                raise TrajectoryError(f"a recorded frame is no image: {error}") from error
        self._prepared.update(zip(missing, frames, strict=True))
        return self._preparation.batch(
            np.stack([self._prepared[int(state)] for state in states]),
            [self._prompts[int(state)] for state in states],
            self._device,
        )
