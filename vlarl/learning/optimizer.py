"""What AdamW remembers of each parameter, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from vlarl.learning.sharding import like, whole

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
