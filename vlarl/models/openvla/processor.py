"""From a frame and an instruction to what the network computes on, and from actions to tokens and
back. torch is loaded for batches of tensors alone.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.images import Frame, ImageError, decode_image, prepare_image
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import MAX_PROMPT_TOKENS
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.serving import Encoded, Observation, ObservationError
from vlarl.models.statistics import NORMALIZE_EPSILON, ActionStats

if TYPE_CHECKING:
    import torch

    from vlarl.models.network import ObservationBatch
    from vlarl.models.openvla.vision import TowerPixels

_KNOWN_PROMPTS = 4096
"""Instructions whose prompts are kept."""


class ObservationProcessor(ABC):
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
        """Fills prompts up on the right."""
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

    def encode(self, observation: Observation) -> Encoded:
        """An observation as the engine takes it.

        Raises:
            ImageError: an image's bytes are none.
            ObservationError: something that the policy reads is missing, or can't be read.
        """
        cameras = self.spec.cameras
        if len(observation.images) != len(cameras):
            raise ObservationError(
                "images",
                f"the policy sees {len(cameras)} ({', '.join(cameras)}), not "
                f"{len(observation.images)}",
            )
        frames = [
            self._seen_by(camera, image, observation.center_crop)
            for camera, image in zip(cameras, observation.images, strict=True)
        ]
        prompt_ids = self.prompt(observation.instruction)
        if len(prompt_ids) > MAX_PROMPT_TOKENS:
            raise ObservationError(
                "instruction", f"{len(prompt_ids)} prompt tokens, more than {MAX_PROMPT_TOKENS}"
            )
        proprio = None
        if self.spec.proprio_dim:
            proprio = self.proprioception(observation.proprio, observation.unnorm_key)
        return Encoded(prompt_ids, self._together(frames), proprio)

    def _seen_by(self, camera: str, image: bytes, center_crop: bool | None) -> Frame:
        """`frame` of a camera, which is named where it is another than the main one."""
        try:
            return self.frame(image, center_crop)
        except ImageError as error:
            if camera == self.spec.cameras[0]:
                raise
            raise ObservationError("images", f"{camera}: {error}") from error

    @abstractmethod
    def _together(self, frames: Sequence[Frame]) -> Frame:
        """An observation's prepared frames as the engine takes them."""

    def proprioception(self, values: ArrayLike, key: str = "") -> NDArray[np.float64]:
        """Proprioception [..., P] as the network reads it, in [-1, 1].

        Args:
            values: in the units of the dataset.
            key: the dataset whose statistics normalise it, as `PolicySpec.unnorm_key` takes it.

        Raises:
            ConfigError: no key fits.
            ObservationError: the policy reads none, another number, or only finite ones.
        """
        width, array = self.spec.proprio_dim, np.asarray(values, dtype=np.float64)
        if not width:
            raise ObservationError("proprio", "the policy reads no proprioception")
        if array.shape[-1:] != (width,):
            raise ObservationError(
                "proprio",
                f"proprioception has shape {list(array.shape)}, the policy reads {width} numbers",
            )
        if not np.isfinite(array).all():
            raise ObservationError("proprio", "proprioception has numbers that aren't finite")
        return normalized_proprio(array, self.spec.proprio_stats[self.spec.unnorm_key(key)])

    def batch(
        self,
        frames: NDArray[np.uint8],
        prompts: Sequence[Sequence[int]],
        device: torch.device,
        proprio: NDArray[np.float64] | None = None,
    ) -> ObservationBatch:
        """Inputs of B observations.

        Args:
            frames: prepared, [B, S, S, 3], or of several cameras [B, I, S, S, 3].
            prompts: [B], their ids.
            device: where the inputs lie.
            proprio: normalised [B, P], where the policy reads it.
        """
        import torch

        from vlarl.models.network import ObservationBatch, pad_prompts

        each = torch.from_numpy(frames).to(device).reshape(-1, *frames.shape[-3:])
        towers = self.pixels.to(device)(each)
        pixels = towers.reshape(len(frames), -1, *towers.shape[2:])
        ids, lengths = pad_prompts(prompts, self.pad_id, device)
        state = None
        if proprio is not None:
            state = torch.from_numpy(proprio).to(device, torch.float32)
        return ObservationBatch(pixels, ids, lengths, state)

    @functools.cached_property
    def pixels(self) -> TowerPixels:
        """From frames to the towers' inputs, in torch."""
        from vlarl.models.openvla.vision import TowerPixels

        return TowerPixels(self._checkpoint)


class Processor(ObservationProcessor):
    """A checkpoint's way from observations to inputs, and between actions and tokens."""

    def _together(self, frames: Sequence[Frame]) -> Frame:
        (frame,) = frames
        return frame

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


def normalized_proprio(values: NDArray[np.float64], statistics: ActionStats) -> NDArray[np.float64]:
    """Proprioception in [-1, 1]; a dimension that the mask leaves out is clipped alone.

    Unlike an action's, a constant dimension doesn't become 0 but what the formula gives.
    """
    unit = (values - statistics.q01) / (statistics.q99 - statistics.q01 + NORMALIZE_EPSILON)
    return np.clip(np.where(statistics.mask, 2 * unit - 1, values), -1.0, 1.0)
