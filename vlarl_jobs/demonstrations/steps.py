"""From the control steps of a recording to the samples of a policy: units, no-ops, held actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STILL = 1e-4
"""Norm of a movement below which OpenVLA's training data have no sample."""


@dataclass(frozen=True)
class PolicySteps:
    """M samples of an episode."""

    starts: npt.NDArray[np.int64]
    """[M], the control step before which each sample's frame is taken."""
    actions: npt.NDArray[np.float32]
    """[M, 7], in the units of the dataset."""


def in_dataset_units(actions: Array) -> Array:
    """Actions [..., 7] of the simulator (gripper -1 open, +1 closed) as the datasets have them
    (1 open, 0 closed).
    """
    converted = np.array(actions, dtype=np.float64)
    converted[..., -1] = (1 - converted[..., -1]) / 2
    return converted


def kept_without_no_ops(actions: Array) -> npt.NDArray[np.int64]:
    """Indices of the actions [T, 7] that do something: that move, or that change the gripper's
    command against the last one kept.

    The rule by which OpenVLA's LIBERO data were made.
    """
    kept: list[int] = []
    for number, action in enumerate(actions):
        moves = bool(np.linalg.norm(action[:-1]) >= STILL)
        if moves or (kept and action[-1] != actions[kept[-1]][-1]):
            kept.append(number)
    return np.array(kept, dtype=np.int64)


def held_actions(expert_actions: Array, repeat: int) -> PolicySteps:
    """The samples of a recording whose every action was held for `repeat` control steps."""
    starts = np.arange(0, len(expert_actions), repeat)
    actions = in_dataset_units(expert_actions[starts])
    return PolicySteps(starts, actions.astype(np.float32))


def grouped_actions(actions: Array, repeat: int) -> PolicySteps:
    """The samples of a recording at every control step, no-ops left out.

    `repeat` control steps make one sample: the mean movement, which held as long goes as far, and
    the last gripper command.
    """
    kept = kept_without_no_ops(actions)
    groups = [kept[first : first + repeat] for first in range(0, len(kept), repeat)]
    merged = np.zeros((len(groups), actions.shape[1]))
    for number, group in enumerate(groups):
        merged[number] = actions[group].mean(axis=0)
        merged[number, -1] = actions[group[-1], -1]
    starts = np.array([group[0] for group in groups], dtype=np.int64)
    return PolicySteps(starts, in_dataset_units(merged).astype(np.float32))
