"""Answers of which only a part was executed: what of them is compared, and what counts.

An answer is for C control steps of D tokens each, K = C * D; token i belongs to step i // D. Of a
chunk that an episode's end or `env.replan_after` cut short, the later tokens did nothing. They are
left out of every sum and mean.

`executed`: bool [B, C], whether a control step was executed, the first one always; none: answers
are for one control step, and all of them counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlarl.config.learning import Ratio


def executed_mask(counts: Tensor, chunk: int) -> Tensor | None:
    """`executed` of answers that are for so many control steps.

    counts: int64 [B], of each answer the control steps that were executed, 1 to chunk.
    """
    if chunk == 1:
        return None
    return torch.arange(chunk, device=counts.device) < counts[:, None]


def log_ratio(new: Tensor, old: Tensor, ratio: Ratio, executed: Tensor | None = None) -> Tensor:
    """Differences of log-probs [B, K], of what the ratio is of: [B, K] of tokens, [B, C] of control
    steps, [B, 1] of whole answers; 0 where nothing was executed.
    """
    # Before anything is exponentiated: there is nothing that a later product could spoil.
    moved = _only(new - old, executed)
    match ratio:
        case "token":
            return moved
        case "step" if executed is not None:
            return moved.reshape(*executed.shape, -1).sum(dim=-1)
        case _:
            return moved.sum(dim=-1, keepdim=True)


def summed(values: Tensor, executed: Tensor | None = None) -> Tensor:
    """Sums [B] of [B, R] over what counts; R: K tokens or C control steps."""
    return _only(values, executed).sum(dim=-1)


def averaged(values: Tensor, executed: Tensor | None = None) -> Tensor:
    """Means [B] of [B, R] over what counts; R: K tokens, C control steps, or 1."""
    if executed is None or values.shape[1] == 1:
        return values.mean(dim=-1)
    return summed(values, executed) / _spread(executed, values.shape[1]).sum(dim=-1)


def mean_of_all(values: Tensor, executed: Tensor | None = None) -> float:
    """The mean of [B, R] over what counts in all answers."""
    if executed is not None and values.shape[1] > 1:
        values = values[_spread(executed, values.shape[1])]
    return float(values.mean())


def _only(values: Tensor, executed: Tensor | None) -> Tensor:
    """[B, R] with zeros in the place of what doesn't count."""
    if executed is None:
        return values
    return values.masked_fill(~_spread(executed, values.shape[1]), 0.0)


def _spread(executed: Tensor, width: int) -> Tensor:
    """`executed` of tokens or of control steps: bool [B, width]."""
    return executed.repeat_interleave(width // executed.shape[1], dim=1)
