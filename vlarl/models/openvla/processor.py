"""From a frame and an instruction to what the network computes on, and from actions to tokens and
back. torch is loaded for batches of tensors alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.images import Frame, decode_image, prepare_image
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import MAX_PROMPT_TOKENS
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.serving import Encoded
from vlarl.models.statistics import ActionStats

if TYPE_CHECKING:
    import torch

    from vlarl.models.network import ObservationBatch
    from vlarl.models.openvla.vision import TowerPixels

_KNOWN_PROMPTS = 4096
"""Instructions whose prompts are kept."""


class PromptTooLongError(ValueError):
    """An instruction has more tokens than the engine takes; the message is short."""


class ObservationProcessor:
    """What both OpenVLA families read alike of observations: frames and prompts."""

    def __init__(self, checkpoint: Path, config: OpenVLAConfig, center_crop: bool) -> None:
        """Reads the tokenizer.

        Args:
            checkpoint: the folder.
            config: what it says.
            center_crop: whether frames are cropped to their centre.

        Raises:
            ConfigError: the tokenizer is missing, broken or not Llama-like.
        """
        self.spec = config.spec
        self.center_crop = center_crop
        self.pad_id = config.pad_token_id
        self.action_tokenizer = config.action_tokenizer
        self._checkpoint = checkpoint
        self._prompt_ids = functools.lru_cache(maxsize=_KNOWN_PROMPTS)(
            PromptBuilder(checkpoint).token_ids
        )

    def frame(self, encoded: bytes, center_crop: bool | None = None) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Args:
            encoded: the frame.
            center_crop: whether it is cropped; None: as all are.

        Raises:
            ImageError: the bytes are no image.
        """
        crop = self.center_crop if center_crop is None else center_crop
        return prepare_image(decode_image(encoded), self.spec.image_size, crop)

    def prompt(self, instruction: str) -> list[int]:
        """Prompt ids, "▁" last."""
        return list(self._prompt_ids(instruction))

    @functools.cached_property
    def pixels(self) -> TowerPixels:
        """From frames to the towers' inputs, in torch."""
        from vlarl.models.openvla.vision import TowerPixels

        return TowerPixels(self._checkpoint)


class Processor(ObservationProcessor):
    """A checkpoint's way from observations to inputs, and between actions and tokens."""

    def encode(self, image: bytes, instruction: str, center_crop: bool | None = None) -> Encoded:
        """An observation as the engine takes it.

        Args:
            image: the encoded frame.
            instruction: what is to be done.
            center_crop: whether this frame is cropped; None: as all are.

        Raises:
            ImageError: the bytes are no image.
            PromptTooLongError: the prompt has too many tokens.
        """
        pixels = self.frame(image, center_crop)
        prompt_ids = self.prompt(instruction)
        if len(prompt_ids) > MAX_PROMPT_TOKENS:
            raise PromptTooLongError(
                f"{len(prompt_ids)} prompt tokens, more than {MAX_PROMPT_TOKENS}"
            )
        return Encoded(prompt_ids, pixels)

    def tokens(self, actions: ArrayLike, statistics: ActionStats) -> NDArray[np.int64]:
        """Ids int64 [..., action_dim] of actions in the statistics' units.

        Raises:
            ValueError: a number is NaN.
        """
        return self.action_tokenizer.tokens(actions, statistics)

    def actions(self, token_ids: ArrayLike, statistics: ActionStats) -> NDArray[np.float64]:
        """Actions float64 [..., action_dim], in the statistics' units, of ids.

        Raises:
            ValueError: an id is not an action id.
        """
        return self.action_tokenizer.actions(token_ids, statistics)

    def batch(
        self, frames: NDArray[np.uint8], prompts: Sequence[Sequence[int]], device: torch.device
    ) -> ObservationBatch:
        """Inputs from prepared frames [B, S, S, 3] and prompt ids."""
        import torch

        from vlarl.models.network import ObservationBatch, pad_prompts

        pixels = self.pixels.to(device)(torch.from_numpy(frames).to(device))
        ids, lengths = pad_prompts(prompts, self.pad_id, device)
        return ObservationBatch(pixels, ids, lengths)
