"""Samples as batches of tensors: frames, prompts, action tokens, poses, labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlarl.data.dataset import DatasetError
from vlarl.data.frames import FrameStore
from vlarl.images import ImageError
from vlarl.learning.ranks import Indices


@dataclass(frozen=True)
class SampleBatch:
    """B samples as tensors."""

    frames: Tensor
    """uint8 [B, S, S, 3]."""
    prompt_ids: Tensor
    """int64 [B, L], padded on the right."""
    prompt_lengths: Tensor
    """int64 [B]."""
    token_ids: Tensor
    """int64 [B, 7], the expert's action."""
    poses: Tensor
    """float32 [B, P] in metres, NaN where a sample's task has no such pose."""
    tasks: Tensor
    """int64 [B], number of each sample's task among those that were read."""
    labels: Tensor
    """float32 [B], 1 where the action leads somewhere, 0 where it doesn't; NaN: nobody asked."""

    def to(self, device: torch.device) -> SampleBatch:
        """The same on a device."""
        return SampleBatch(**{name: value.to(device) for name, value in vars(self).items()})


class Samples:
    """N samples of any tasks."""

    def __init__(
        self,
        frames: FrameStore,
        prompts: tuple[Tensor, Tensor],
        tasks: Indices,
        token_ids: NDArray[np.int64],
        poses: NDArray[np.float32],
        labels: NDArray[np.float32],
    ) -> None:
        """prompts: every task's, padded, and their lengths; tasks: [N], the row of each sample."""
        self.frames = frames
        self.token_ids = token_ids
        self.poses = poses
        self.labels = labels
        self._prompts = prompts
        self._tasks = torch.from_numpy(tasks)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, chosen: Indices) -> SampleBatch:
        """Samples by number, on the CPU.

        Raises:
            DatasetError: a frame is no image.
        """
        try:
            frames = self.frames[chosen]
        except ImageError as error:
            raise DatasetError(f"a demonstration's frame is no image: {error}") from error
        ids, lengths = self._prompts
        rows = self._tasks[torch.from_numpy(chosen)]
        lengths = lengths[rows]
        return SampleBatch(
            frames=torch.from_numpy(frames),
            prompt_ids=ids[rows, : int(lengths.max())],
            prompt_lengths=lengths,
            token_ids=torch.from_numpy(self.token_ids[chosen]),
            poses=torch.from_numpy(self.poses[chosen]),
            tasks=rows,
            labels=torch.from_numpy(self.labels[chosen]),
        )
