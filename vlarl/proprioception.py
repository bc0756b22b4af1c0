"""What policies read of the arm: where the hand is, how it is turned, and its fingers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def proprioception(
    position: ArrayLike, quaternion: ArrayLike, fingers: ArrayLike
) -> NDArray[np.float64]:
    """A state [..., 8] as LIBERO's policies were trained on it: position, axis-angle, fingers.

    Args:
        position: [..., 3], of the hand in metres, world frame.
        quaternion: [..., 4], of the hand, x, y, z, w.
        fingers: [..., 2], joints of the gripper in metres, the right one's below 0.
    """
    parts = (position, axis_angle(quaternion), fingers)
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts], axis=-1)


def axis_angle(quaternion: ArrayLike) -> NDArray[np.float64]:
    """Turns [..., 3], axis times angle in radians, of unit quaternions [..., 4], x, y, z, w.

    As robosuite's `quat2axisangle` has it, from which LIBERO's data and its evaluations are: with a
    negative w the angle is above pi, so that a turn has two notations; no other one is exchanged
    for it, because a policy learned the one that came. No turn is three zeros.
    """
    quaternion = np.asarray(quaternion, dtype=np.float64)
    w = np.clip(quaternion[..., 3:], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    turned = quaternion[..., :3] * 2.0 * np.arccos(w)
    turns: NDArray[np.float64] = np.zeros_like(turned)
    np.divide(turned, sine, out=turns, where=sine != 0.0)
    return turns
