"""Samples as batches of tensors: frames, prompts, action tokens, proprioception, poses, labels."""

from __future__ import annotations

from collections.abc import Sequence
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
    """uint8 [B, S, S, 3], of the main camera."""
    prompt_ids: Tensor
    """int64 [B, L], padded on the right."""
    prompt_lengths: Tensor
    """int64 [B]."""
    token_ids: Tensor
    """int64 [B, K], the expert's action; of a policy that answers chunks, its next actions."""
    poses: Tensor
    """float32 [B, P] in metres, NaN where a sample's task has no such pose."""
    tasks: Tensor
    """int64 [B], number of each sample's task among those that were read."""
    labels: Tensor
    """float32 [B], 1 where the action leads somewhere, 0 where it doesn't; NaN: nobody asked."""
    counted: Tensor
    """bool [B, K], whether a token's action is one of the episode's. After its end, tokens are
    those of its last action."""
    proprio: Tensor | None = None
    """float32 [B, P], normalised, where the policy reads it."""
    further_frames: Tensor | None = None
    """uint8 [B, I - 1, S, S, 3], of the policy's further cameras; None: it has none."""

    def to(self, device: torch.device) -> SampleBatch:
        """The same on a device."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        return SampleBatch(**{name: value.to(device) for name, value in found.items()})


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
        counted: NDArray[np.bool_],
        proprio: NDArray[np.float32] | None = None,
        further_frames: Sequence[FrameStore] = (),
    ) -> None:
        """Arrays of all samples, as a batch has them of some. prompts: every task's, padded, and
        their lengths; tasks: [N], the row of each sample.
        """
        self.frames = frames
        self.token_ids = token_ids
        self.poses = poses
        self.labels = labels
        self.counted = counted
        self.proprio = proprio
        self.further_frames = further_frames
        self._prompts = prompts
        self._tasks = torch.from_numpy(tasks)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def kept_bytes(self) -> int:
        """Memory that decoded frames of all cameras may come to take."""
        return sum(store.kept_bytes for store in (self.frames, *self.further_frames))

    def __getitem__(self, chosen: Indices) -> SampleBatch:
        """Samples by number, on the CPU.

        Raises:
            DatasetError: a frame is no image.
        """
        try:
            frames, *further = (store[chosen] for store in (self.frames, *self.further_frames))
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
            counted=torch.from_numpy(self.counted[chosen]),
            proprio=None if self.proprio is None else torch.from_numpy(self.proprio[chosen]),
            further_frames=torch.from_numpy(np.stack(further, axis=1)) if further else None,
        )
