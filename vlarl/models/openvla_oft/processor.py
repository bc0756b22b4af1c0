"""From several frames, proprioception and an instruction to what the network computes on, and from
chunks of actions to tokens and back. torch is loaded for batches of tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.models.openvla.processor import ObservationProcessor
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.statistics import NORMALIZE_EPSILON, ActionStats

if TYPE_CHECKING:
    import torch

    from vlarl.models.network import ObservationBatch


class ObservationError(ValueError):
    """An observation lacks what the policy reads; the message is short."""


class ChunkProcessor(ObservationProcessor):
    """A checkpoint's way from observations to inputs, and between chunks and tokens.

    Both conventions have the same prompt ids.
    """

    def __init__(self, checkpoint: Path, config: OFTConfig, center_crop: bool) -> None:
        """Reads the tokenizer.

        Args:
            checkpoint: the folder.
            config: what it says.
            center_crop: whether frames are cropped to their centre.

        Raises:
            ConfigError: the tokenizer is missing, broken or not Llama-like.
        """
        super().__init__(checkpoint, config.base, center_crop)
        self.config = config

    def frames(
        self, images: Mapping[str, bytes], center_crop: bool | None = None
    ) -> NDArray[np.uint8]:
        """Decodes and prepares the frames that the policy sees: uint8 [images, S, S, 3].

        Args:
            images: encoded frames by their camera's name; others are left alone.
            center_crop: whether they are cropped; None: as all are.

        Raises:
            ObservationError: a camera's image is missing.
            ImageError: the bytes are no image.
        """
        cameras = self.config.cameras
        if missing := [name for name in cameras if name not in images]:
            raise ObservationError(
                f"the policy sees {', '.join(cameras)}: the image of {missing[0]} is missing"
            )
        return np.stack([self.frame(images[name], center_crop) for name in cameras])

    def proprioception(self, values: ArrayLike, key: str = "") -> NDArray[np.float64]:
        """Proprioception [..., P] as the network reads it, in [-1, 1].

        Args:
            values: in the units of the dataset.
            key: the dataset whose statistics normalise it, as `PolicySpec.unnorm_key` takes it.

        Raises:
            ConfigError: no key fits.
            ObservationError: the policy reads none, another number, or only finite ones.
        """
        width, array = self.config.proprio_dim, np.asarray(values, dtype=np.float64)
        if not width:
            raise ObservationError("the policy reads no proprioception")
        if array.shape[-1:] != (width,):
            raise ObservationError(
                f"proprioception has shape {list(array.shape)}, the policy reads {width} numbers"
            )
        if not np.isfinite(array).all():
            raise ObservationError("proprioception has numbers that aren't finite")
        return normalized_proprio(array, self.config.proprio_stats[self.spec.unnorm_key(key)])

    def tokens(self, actions: ArrayLike, statistics: ActionStats) -> NDArray[np.int64]:
        """Ids int64 [..., n] of chunks [..., C, action_dim] in the statistics' units.

        Raises:
            ValueError: a number is NaN, or a chunk has another shape.
        """
        ids, config = self.action_tokenizer.tokens(actions, statistics), self.config
        if ids.shape[-2:] != (config.chunk, self.spec.action_dim):
            raise ValueError(
                f"a chunk has shape {[config.chunk, self.spec.action_dim]}, not {list(ids.shape)}"
            )
        return ids.reshape(*ids.shape[:-2], config.tokens)

    def actions(self, token_ids: ArrayLike, statistics: ActionStats) -> NDArray[np.float64]:
        """Chunks float64 [..., C, action_dim], in the statistics' units, of ids [..., n].

        Raises:
            ValueError: an id is not an action id, or a chunk has another number of them.
        """
        values = self.action_tokenizer.decode(token_ids)
        if values.shape[-1:] != (self.config.tokens,):
            raise ValueError(f"a chunk has {self.config.tokens} ids, not {list(values.shape)}")
        steps = values.reshape(*values.shape[:-1], self.config.chunk, self.spec.action_dim)
        return statistics.unnormalize(steps, NORMALIZE_EPSILON)

    def batch(
        self,
        frames: NDArray[np.uint8],
        prompts: Sequence[Sequence[int]],
        device: torch.device,
        proprio: NDArray[np.float64] | None = None,
    ) -> ObservationBatch:
        """Inputs from prepared frames [B, images, S, S, 3], prompt ids, and normalised
        proprioception [B, P] where the policy reads it.
        """
        import torch

        from vlarl.models.network import ObservationBatch, pad_prompts

        each = torch.from_numpy(frames).to(device).flatten(0, 1)
        towers = self.pixels.to(device)(each)
        pixels = towers.reshape(len(frames), -1, *towers.shape[2:])
        ids, lengths = pad_prompts(prompts, self.pad_id, device)
        state = None
        if proprio is not None:
            state = torch.from_numpy(proprio).to(device, torch.float32)
        return ObservationBatch(pixels, ids, lengths, state)


def normalized_proprio(values: NDArray[np.float64], statistics: ActionStats) -> NDArray[np.float64]:
    """Proprioception in [-1, 1]; a dimension that the mask leaves out is clipped alone.

    Unlike an action's, a constant dimension doesn't become 0 but what the formula gives.
    """
    unit = (values - statistics.q01) / (statistics.q99 - statistics.q01 + NORMALIZE_EPSILON)
    return np.clip(np.where(statistics.mask, 2 * unit - 1, values), -1.0, 1.0)
