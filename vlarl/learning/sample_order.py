"""Which samples each step learns from, on which rank, and how they are augmented.

All of it is a function of the seed, the stage, the epoch and the step: nothing needs to be saved,
and any number of ranks takes the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlarl.config import FitConfig
from vlarl.learning.optimizer import mini_batches
from vlarl.learning.ranks import Indices, World
from vlarl.learning.seeds import Stream, generator_for

DRAWS = 16
"""Random numbers that one sample may take in a step."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at once: a part of a step's mini-batch."""

    step: int
    samples: Indices
    places: Indices
    """Where in the mini-batch they are."""
    counted: int
    """How many of them count: see `World.share`."""
    size: int
    """Samples of the mini-batch, on all ranks."""
    last: bool
    """Whether the step is complete with this piece."""


class SampleOrder:
    """The order of a stage's samples."""

    def __init__(self, count: int, fit: FitConfig, world: World, *, seed: int, stage: int) -> None:
        """count: samples learned from; stage: its number in the run."""
        self._count = count
        self._fit = fit
        self._world = world
        self._seed = seed
        self._stage = stage

    def pieces(self, start: int) -> Iterator[MicroBatch]:
        """What this rank computes, from a step to the end."""
        per_epoch = -(-self._count // self._fit.mini_batch)
        for epoch in range(start // per_epoch, -(-self._fit.steps // per_epoch)):
            generator = generator_for(self._seed, Stream.SFT_ORDER, self._stage, epoch)
            batches = mini_batches(self._count, self._fit.mini_batch, generator)
            for step, samples in enumerate(batches, start=epoch * per_epoch):
                if start <= step < self._fit.steps:
                    yield from self._shares(step, samples)

    def _shares(self, step: int, samples: Indices) -> Iterator[MicroBatch]:
        shares = list(self._world.share(np.arange(len(samples)), self._fit.micro_batch))
        for number, (places, counted) in enumerate(shares, start=1):
            last = number == len(shares)
            yield MicroBatch(step, samples[places], places, counted, len(samples), last)

    def draws(self, piece: MicroBatch) -> Tensor:
        """Random numbers of a piece's samples: float32 [B, DRAWS], uniform in [0, 1)."""
        generator = generator_for(self._seed, Stream.SFT_AUGMENTATION, self._stage, piece.step)
        drawn = generator.random((piece.size, DRAWS), dtype=np.float32)
        return torch.from_numpy(drawn[piece.places])
