"""From several frames, proprioception and an instruction to what the network computes on, and from
chunks of actions to tokens and back. torch is loaded for batches of tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.images import Frame
from vlarl.models.openvla.processor import ObservationProcessor
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.statistics import NORMALIZE_EPSILON, ActionStats


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

    def _together(self, frames: Sequence[Frame]) -> Frame:
        return np.stack(frames)

    def tokens(self, actions: ArrayLike, statistics: ActionStats) -> NDArray[np.int64]:
        """Ids int64 [..., n] of chunks [..., C, action_dim] in the statistics' units.

        Raises:
            ValueError: a number is NaN, or a chunk has another shape.
        """
        ids, spec = self.action_tokenizer.tokens(actions, statistics), self.spec
        if ids.shape[-2:] != (spec.chunk, spec.action_dim):
            raise ValueError(
                f"a chunk has shape {[spec.chunk, spec.action_dim]}, not {list(ids.shape)}"
            )
        return ids.reshape(*ids.shape[:-2], spec.tokens)

    def actions(self, token_ids: ArrayLike, statistics: ActionStats) -> NDArray[np.float64]:
        """Chunks float64 [..., C, action_dim], in the statistics' units, of ids [..., n].

        Raises:
            ValueError: an id is not an action id, or a chunk has another number of them.
        """
        values = self.action_tokenizer.decode(token_ids)
        if values.shape[-1:] != (self.spec.tokens,):
            raise ValueError(f"a chunk has {self.spec.tokens} ids, not {list(values.shape)}")
        steps = values.reshape(*values.shape[:-1], self.spec.chunk, self.spec.action_dim)
        return statistics.unnormalize(steps, NORMALIZE_EPSILON)
