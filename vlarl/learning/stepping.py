"""An optimizer's step: taken whole, or refused with everything as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlarl.errors import FatalError


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
