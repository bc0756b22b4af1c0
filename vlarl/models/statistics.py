"""Actions in the units of a dataset: its statistics, as OpenVLA computes and stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

STATISTICS = "dataset_statistics.json"
"""Beside a checkpoint's ``config.json``, whose ``norm_stats`` it replaces."""

Statistics = dict[str, Any]
"""One dataset's entry of a checkpoint's ``norm_stats``."""

NORMALIZE_EPSILON = 1e-8
"""Added to the width of a dimension, so that a constant one is no division by zero."""
_LARGEST = float(np.finfo(np.float32).max) / 4


def dataset_statistics(
    actions: NDArray[np.float32],
    trajectories: int,
    range_floor: float,
    proprio: NDArray[np.float32] | None = None,
) -> Statistics:
    """Statistics of a suite's actions [N, 7]: their quantiles become the ends of the bins.

    The gripper, which comes last, is left as it is (0 or 1): its mask is false. A dimension whose
    q01 and q99 lie closer together than the floor is widened to it, around its middle, so that a
    constant one decodes to its constant.

    Args:
        actions: float32[N, 7], in the units of the environment.
        trajectories: number of episodes behind them.
        range_floor: least distance of q01 and q99, in the actions' units.
        proprio: float32[N, P], whose quantiles become its ends, as they are; none: there is none.
    """
    values = actions.astype(np.float64)
    q01, q99 = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    mask = np.arange(values.shape[1]) < values.shape[1] - 1
    narrow = mask & (q99 - q01 < range_floor)
    middle = (q01 + q99) / 2
    q01 = np.where(narrow, middle - range_floor / 2, q01)
    q99 = np.where(narrow, middle + range_floor / 2, q99)
    numbers = _spread(values) | {"q01": q01, "q99": q99, "mask": mask}
    found: Statistics = {"action": _listed(numbers)}
    if proprio is not None:
        state = proprio.astype(np.float64)
        ends = {name: np.quantile(state, at, axis=0) for name, at in (("q01", 0.01), ("q99", 0.99))}
        found["proprio"] = _listed(_spread(state) | ends)
    return found | {"num_transitions": len(values), "num_trajectories": trajectories}


def _spread(values: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Of each column."""
    return {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "max": values.max(axis=0),
        "min": values.min(axis=0),
    }


def _listed(numbers: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: vector.tolist() for name, vector in numbers.items()}


@dataclass(frozen=True, eq=False)
class ActionStats:
    """A dataset's action statistics, one value for each action dimension (float64[action_dim]).

    ``mask`` is true where a dimension is normalised; LIBERO's gripper is not.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]
    min: NDArray[np.float64]
    max: NDArray[np.float64]

    @classmethod
    def from_json(cls, action: Mapping[str, Any]) -> ActionStats:
        """From ``norm_stats[key]["action"]``; a missing mask is all true, missing ``min`` and
        ``max`` are the quantiles.

        Raises:
            ValueError: the quantiles are missing, cross, or aren't finite; lengths differ.
        """
        missing = [name for name in ("q01", "q99") if action.get(name) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} missing: tokens stand for values between these "
                "quantiles, and min and max are no substitute; take the statistics of the "
                "fine-tuning run"
            )
        q01, q99 = _vector("q01", action["q01"]), _vector("q99", action["q99"])
        bounds = [action.get(name) for name in ("min", "max")]
        # Only normalising asks for these, to find the dimensions that carry nothing.
        has_bounds = None not in bounds
        low = _vector("min", action["min"]) if has_bounds else q01
        high = _vector("max", action["max"]) if has_bounds else q99
        mask = _mask(action.get("mask"), len(q01))
        if len({q01.shape, q99.shape, low.shape, high.shape, mask.shape}) != 1:
            raise ValueError("q01, q99, min, max and mask differ in length")
        if crossed := np.flatnonzero(q01 > q99).tolist():
            raise ValueError(f"q01 lies above q99 in dimension {crossed[0]}")
        return cls(q01=q01, q99=q99, mask=mask, min=low, max=high)

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return len(self.q01)

    def unnormalize(self, values: ArrayLike, epsilon: float = 0.0) -> NDArray[np.float64]:
        """Normalised values [..., action_dim] in the dataset's units.

        ``epsilon`` is added to each dimension's width, as OpenVLA-OFT does.
        """
        array = np.asarray(values, dtype=np.float64)
        width = self.q99 - self.q01 + epsilon
        return np.where(self.mask, 0.5 * (array + 1) * width + self.q01, array)

    def normalize(self, action: ArrayLike) -> NDArray[np.float64]:
        """Actions [..., action_dim] in the dataset's units as training targets in [-1, 1].

        A dimension whose minimum equals its maximum carries nothing and becomes 0.
        """
        array = np.asarray(action, dtype=np.float64)
        unit = (array - self.q01) / (self.q99 - self.q01 + NORMALIZE_EPSILON)
        scaled = np.where(self.mask, np.clip(2 * unit - 1, -1.0, 1.0), array)
        return np.where(self.min == self.max, 0.0, scaled)


def to_simulator(action: ArrayLike) -> NDArray[np.float64]:
    """An un-normalised action [..., action_dim] in the simulator's gripper convention.

    The data say 0 for closed and 1 for open, the simulator wants -1 to open and +1 to close.
    """
    converted = np.array(action, dtype=np.float64)
    converted[..., -1] = -np.sign(2 * converted[..., -1] - 1)
    return converted


def _vector(name: str, values: Sequence[float]) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"{name} is one number for each dimension")
    # Actions leave as float32, and a width is a difference of two.
    if not (np.abs(vector) < _LARGEST).all():
        raise ValueError(f"{name} has values that aren't finite: {vector.tolist()}")
    return vector


def _mask(values: Sequence[bool] | None, dimensions: int) -> NDArray[np.bool_]:
    if values is None:
        return np.ones(dimensions, dtype=np.bool_)
    mask = np.asarray(values)
    if mask.ndim != 1 or mask.dtype.kind not in "bi":
        raise ValueError("mask is true or false for each dimension")
    return mask.astype(np.bool_)
