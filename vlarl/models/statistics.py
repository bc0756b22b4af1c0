"""A suite's action statistics, as OpenVLA computes and stores them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistics = dict[str, Any]
"""One dataset's entry of a checkpoint's ``norm_stats``."""


def dataset_statistics(
    actions: NDArray[np.float32], trajectories: int, range_floor: float
) -> Statistics:
    """Statistics of a suite's actions [N, 7]: their quantiles become the ends of the bins.

    The gripper, which comes last, is left as it is (0 or 1): its mask is false. A dimension whose
    q01 and q99 lie closer together than the floor is widened to it, around its middle, so that a
    constant one decodes to its constant.

    Args:
        actions: float32[N, 7], in the units of the environment.
        trajectories: number of episodes behind them.
        range_floor: least distance of q01 and q99, in the actions' units.
    """
    values = actions.astype(np.float64)
    q01, q99 = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    mask = np.arange(values.shape[1]) < values.shape[1] - 1
    narrow = mask & (q99 - q01 < range_floor)
    middle = (q01 + q99) / 2
    q01 = np.where(narrow, middle - range_floor / 2, q01)
    q99 = np.where(narrow, middle + range_floor / 2, q99)
    numbers = {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "max": values.max(axis=0),
        "min": values.min(axis=0),
        "q01": q01,
        "q99": q99,
        "mask": mask,
    }
    return {
        "action": {name: vector.tolist() for name, vector in numbers.items()},
        "num_transitions": len(values),
        "num_trajectories": trajectories,
    }
