"""Targets of a policy that answers several control steps at once: the actions that followed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ChunkTargets(NamedTuple):
    """Which samples' actions are the targets of each sample."""

    samples: NDArray[np.int64]
    """[N, C]: sample t's are t, t + 1, ... t + C - 1. Beyond the end of its episode, the last."""
    exist: NDArray[np.bool_]
    """[N, C], whether the episode has so many."""

    @property
    def whole(self) -> NDArray[np.bool_]:
        """[N], whether a sample's episode has all of its targets."""
        return np.asarray(self.exist.all(axis=1))


def chunk_targets(episodes: NDArray[np.int32], chunk: int) -> ChunkTargets:
    """Targets of the samples of one task, of which none is left out within an episode.

    Args:
        episodes: [N], number of each sample's episode; never decreases.
        chunk: C, the number of actions of an answer.
    """
    wanted = np.arange(len(episodes))[:, None] + np.arange(chunk)
    last = np.searchsorted(episodes, episodes, side="right")[:, None] - 1
    return ChunkTargets(np.minimum(wanted, last), wanted <= last)
