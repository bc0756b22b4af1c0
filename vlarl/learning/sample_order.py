"""Which samples each step learns from, on which rank, and how they are augmented.

All of it is a function of the seed, the stage, the epoch and the step: nothing needs to be saved,
and any number of ranks takes the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vlarl.config import FitConfig
from vlarl.learning.optimizer import mini_batches
from vlarl.learning.ranks import MicroBatch, Ranks
from vlarl.learning.seeds import Stream, generator_for

DRAWS = 16
"""Random numbers that one sample may take in a step, without those of further cameras."""

FURTHER_DRAWS = 32
"""Further ones, drawn after all samples' first: so these stay what they were without them."""


class SampleOrder:
    """The order of a stage's samples."""

    def __init__(self, count: int, fit: FitConfig, ranks: Ranks, *, seed: int, stage: int) -> None:
        """count: samples learned from; stage: its number in the run."""
        self._count = count
        self._fit = fit
        self._ranks = ranks
        self._seed = seed
        self._stage = stage

    def micro_batches(self, start: int) -> Iterator[tuple[int, MicroBatch]]:
        """What this rank computes, from a step to the end: the step, and a part of it."""
        per_epoch = -(-self._count // self._fit.mini_batch)
        for epoch in range(start // per_epoch, -(-self._fit.steps // per_epoch)):
            generator = generator_for(self._seed, Stream.SFT_ORDER, self._stage, epoch)
            batches = mini_batches(self._count, self._fit.mini_batch, generator)
            for step, samples in enumerate(batches, start=epoch * per_epoch):
                if start <= step < self._fit.steps:
                    for one in self._ranks.share(samples, self._fit.micro_batch):
                        yield step, one

    def draws(self, step: int, micro_batch: MicroBatch) -> Tensor:
        """Random numbers of a micro-batch's samples: float32 [B, DRAWS + FURTHER_DRAWS], uniform in
        [0, 1).
        """
        generator = generator_for(self._seed, Stream.SFT_AUGMENTATION, self._stage, step)
        drawn = [
            generator.random((micro_batch.size, count), dtype=np.float32)[micro_batch.places]
            for count in (DRAWS, FURTHER_DRAWS)
        ]
        return torch.from_numpy(np.concatenate(drawn, axis=1))
