"""A chunk's tokens, drawn from their logits. Each token is drawn independently of the others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def uniforms(seed: int, tokens: int) -> NDArray[np.float64]:
    """What an answer is drawn by: float64 [tokens] in [0, 1), the same for the same seed.

    seed: 0 to 2**64 - 1.
    """
    return np.random.default_rng(seed).random(tokens)


def draw(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Bins int64 [B, n] and their log-probs float32 [B, n], by the inverse of the distribution.

    So what an answer is doesn't depend on the others of its batch.

    Args:
        logits: float32 [B, n, bins].
        temperatures: float32 [B]; at 0 the likeliest bin is taken, and log-probs are those at 1.
        uniforms: float64 [B, n], in [0, 1).
    """
    greedy = temperatures == 0
    scale = torch.where(greedy, torch.ones_like(temperatures), temperatures)
    logprobs = (logits / scale[:, None, None]).log_softmax(dim=-1)
    # In double, so that rounding doesn't take from the last bins what others have.
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    below = cumulative <= uniforms[..., None] * cumulative[..., -1:]
    drawn = below.sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    bins = torch.where(greedy[:, None], logits.argmax(dim=-1), drawn)
    return bins, logprobs.gather(-1, bins[..., None])[..., 0]
