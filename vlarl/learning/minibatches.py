"""The order in which samples are learned from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def mini_batches(
    count: int, size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """A random order of `count` samples in pieces of at most `size` whose lengths differ by at
    most one: no ragged rest takes a whole step in the direction of a few samples.
    """
    order = generator.permutation(count).astype(np.int64)
    yield from np.array_split(order, -(-count // size))
