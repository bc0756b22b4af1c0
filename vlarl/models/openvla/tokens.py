"""Action tokens: a continuous action as seven ids at the end of the vocabulary, and back.

Each normalised dimension in [-1, 1] falls into one of 256 uniform bins; the bins take the last
256 ids of the text vocabulary in reverse: -1 is the last id, +1 the 256th last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.models.statistics import ActionStats

ACTION_BINS = 256
"""Number of action ids. There are 255 bins between 256 edges: the two lowest ids share a value."""


@dataclass(frozen=True)
class ActionTokenizer:
    """Maps normalised values to vocabulary ids.

    ``vocab_size`` is the text vocabulary's size without its padding (32000 for Llama 2).
    """

    vocab_size: int

    bins: ClassVar[int] = ACTION_BINS
    _edges: ClassVar[NDArray[np.float64]] = np.linspace(-1.0, 1.0, ACTION_BINS)
    _centers: ClassVar[NDArray[np.float64]] = (_edges[:-1] + _edges[1:]) / 2

    @property
    def action_ids(self) -> range:
        """All 256 action ids, ascending; the last one is ``vocab_size - 1``."""
        return range(self.vocab_size - ACTION_BINS, self.vocab_size)

    def tokens(self, actions: ArrayLike, statistics: ActionStats) -> NDArray[np.int64]:
        """Ids int64 [..., action_dim] of actions in the statistics' units.

        Raises:
            ValueError: a number is NaN.
        """
        return self.encode(statistics.normalize(actions))

    def actions(self, ids: ArrayLike, statistics: ActionStats) -> NDArray[np.float64]:
        """Actions float64 [..., action_dim], in the statistics' units, of ids.

        Raises:
            ValueError: an id is not an action id.
        """
        return statistics.unnormalize(self.decode(ids))

    def encode(self, values: ArrayLike) -> NDArray[np.int64]:
        """Ids of normalised values, any shape; values beyond [-1, 1] are clipped.

        Raises:
            ValueError: a value is not a number.
        """
        array = np.asarray(values, dtype=np.float64)
        if np.isnan(array).any():
            raise ValueError("an action to encode holds NaN")
        digits = np.digitize(np.clip(array, -1.0, 1.0), self._edges)
        return np.asarray(self.vocab_size - digits, dtype=np.int64)

    def decode(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Bin centres of action ids, any shape.

        Raises:
            ValueError: an id is not an action id.
        """
        array = np.asarray(ids, dtype=np.int64)
        first, last = self.action_ids[0], self.action_ids[-1]
        if array.size and (array.min() < first or array.max() > last):
            raise ValueError(f"action ids lie in [{first}, {last}], got {array.tolist()}")
        return self._centers[np.clip(self.vocab_size - array - 1, 0, ACTION_BINS - 2)]
