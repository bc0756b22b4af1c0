"""An optimizer's steps: from which samples, how large, and what AdamW remembers of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlarl.config import FitConfig
from vlarl.errors import FatalError
from vlarl.learning.ranks import like, whole

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def gathered_moments(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], prefix: str
) -> dict[str, Tensor]:
    """Moments of named parameters, whole, as "PREFIX.NAME.MOMENT". Where the parameters are
    sharded, every rank must call it.
    """
    gathered = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        for moment in _MOMENTS:
            if moment in state:
                gathered[f"{prefix}.{name}.{moment}"] = whole(state[moment])
    return gathered


def restore_moments(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    prefix: str,
) -> None:
    """Takes over what `gathered_moments` gave; every rank holds all of it."""
    for name, parameter in parameters.items():
        state = {}
        for moment in _MOMENTS:
            if (value := tensors.get(f"{prefix}.{name}.{moment}")) is not None:
                # AdamW counts its steps in a plain tensor on the CPU.
                counts = moment == "step"
                state[moment] = value.clone() if counts else like(value, parameter).clone()
        if state:
            optimizer.state[parameter] = state


class DivergedError(FatalError):
    """A loss or a gradient is no number any more; no step was taken from it."""


def take_step(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], max_norm: float, refusal: str
) -> float:
    """Takes the step of the accumulated gradient, scaled down to `max_norm`, and forgets it.

    A gradient may be infinite where its loss isn't: products overflow on the way back. Scaled down
    it is 0 or no number, and AdamW would keep either in weights and moments for good. Where the
    parameters are sharded every rank must call it; the norm is all ranks', so they refuse together.

    Args:
        optimizer: of the parameters.
        parameters: those that were trained.
        max_norm: bound on the gradient's norm.
        refusal: what the error says of a gradient that isn't finite.

    Returns:
        The gradient's norm before it was scaled.

    Raises:
        DivergedError: it isn't finite. Weights and moments are as they were.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    size = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not math.isfinite(size):
        optimizer.zero_grad()
        raise DivergedError(refusal)
    optimizer.step()
    optimizer.zero_grad()
    return size


def learning_rate(step: int, fit: FitConfig) -> float:
    """Rate of a step, counted from 0: a linear rise, then constant or down a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, fit.warmup_steps))
    if fit.schedule == "constant":
        return fit.learning_rate * rise
    done = max(0, step - fit.warmup_steps) / max(1, fit.steps - fit.warmup_steps)
    return fit.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * done))


def mini_batches(
    count: int, size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """A random order of `count` samples in pieces of at most `size` whose lengths differ by at
    most one: no ragged rest takes a whole step in the direction of a few samples.
    """
    order = generator.permutation(count).astype(np.int64)
    yield from np.array_split(order, -(-count // size))
