"""What goes into a policy's engine, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from vlarl.images import Frame


@dataclass(frozen=True)
class Encoded:
    """An observation as the engine takes it."""

    prompt_ids: list[int]
    """The instruction's prompt, without the image's tokens."""
    pixels: Frame
    """uint8 [S, S, 3], prepared for the network."""


@dataclass(frozen=True)
class SampledAction:
    """Tokens of one action."""

    token_ids: list[int]
    """Vocabulary ids, one for each action dimension."""
    logprobs: list[float]
    """Natural log of each token's probability over the action ids, at the sampling temperature
    (greedy: at temperature 1).
    """
    policy_version: int
    """Version of the weights that produced all of them."""
