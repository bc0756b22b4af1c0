"""Random streams, each a function of the run's seed, the iteration and its purpose.

There is no random state that lives from one iteration to the next, so a resumed run draws what the
interrupted one would have drawn.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What a random stream is for."""

    TASKS = 0
    EPISODE = 1
    POLICY_ORDER = 2
    CRITIC_ORDER = 3
    SFT_ORDER = 4
    SFT_AUGMENTATION = 5
    GROUP = 6
    MEMBER = 7


def generator_for(seed: int, stream: Stream, *position: int) -> np.random.Generator:
    """The stream's generator at a position: an iteration, an index within it, or an attempt, a
    group and a member of it; in fine-tuning on demonstrations a stage, an epoch or a step.
    """
    return np.random.default_rng([seed, int(stream), *position])
