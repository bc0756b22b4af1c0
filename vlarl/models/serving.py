"""What goes into a policy's engine, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlarl.images import Frame


@dataclass(frozen=True)
class Observation:
    """What a policy is shown at one control step, as it was recorded."""

    images: Sequence[bytes]
    """An encoded frame of each of the policy's cameras, in its order."""
    instruction: str
    """What is to be done."""
    proprio: Sequence[float] = ()
    """[P], proprioception in the dataset's units; not looked at where the policy reads none."""
    unnorm_key: str = ""
    """Whose statistics normalise it, as `PolicySpec.unnorm_key` takes it."""
    center_crop: bool | None = None
    """Whether its frames are cropped to their centre; None: as all are."""


class ObservationError(ValueError):
    """An observation isn't what the policy reads; the message is short."""

    def __init__(self, field: str, message: str) -> None:
        """field: of the observation, as the contract names it."""
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Encoded:
    """An observation as the engine takes it."""

    prompt_ids: list[int]
    """The instruction's prompt, without the image's tokens."""
    pixels: Frame
    """uint8 [S, S, 3], prepared for the network; of a policy with several cameras [I, S, S, 3]."""
    proprio: NDArray[np.float64] | None = None
    """[P], normalised, where the policy reads it."""


@dataclass(frozen=True)
class SampledAction:
    """Tokens of one answer."""

    token_ids: list[int]
    """[K], vocabulary ids, one for each action dimension of each control step."""
    logprobs: list[float]
    """Natural log of each token's probability over the action ids, at the sampling temperature
    (greedy: at temperature 1).
    """
    policy_version: int
    """Version of the weights that produced all of them."""
