"""From where the hand should go to the action that takes it there.

The arm's controller pulls the hand towards a point that lies an action's length ahead of where it
is, and damps it critically. A held action is therefore a velocity, reached within two control
steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
"""float64[3], metres or radians in the world's frame."""

Matrix = npt.NDArray[np.float64]
"""float64[3, 3], an orientation: its columns are the axes."""

Points = npt.NDArray[np.float64]
"""float64[n, 3], metres."""

CLOSED, OPEN = 0.0, 1.0
"""The gripper in the units of the dataset."""

METRES_PER_STEP = 0.0133
"""What the hand moves in a control step of a full action once it is moving."""

RADIANS_PER_STEP = 0.133
"""The same for its rotation."""

COASTING_STEPS = 2
"""Control steps for which the last action's motion goes on."""

CLOSING_RISE = 0.04
"""Action that rises at 1 cm/s: while the fingers close."""

LIFTING_RISE = 0.15
"""Action that rises at 4 cm/s: while it shows whether they hold."""

STILL_ANGLE = 0.08
"""Radians of error that aren't corrected: the controller holds the last orientation."""

_FRONT_TILT = np.radians(20)
"""Angle below the horizontal at which the fingers point. The hand is 20 cm wide: one end of it must
clear the table, the other the cabinet."""

_CONE_SLOPE = 3.0
_CONE_RADIUS = 0.01
_FREE_LAG = 0.04


def towards(offset: Vector, gripper: float, repeat: int, turn: Vector | None = None) -> Vector:
    """The action, float64[7], that moves the hand by `offset` in `repeat` control steps.

    Where that is further than the arm moves in this time, it moves in that direction.

    Args:
        offset: Metres to move.
        gripper: CLOSED or OPEN.
        repeat: Control steps for which the action will be held.
        turn: Axis of a rotation times its angle; none: keep the orientation.
    """
    steps = repeat + COASTING_STEPS
    action = np.zeros(7)
    action[:3] = _within_reach(offset / (METRES_PER_STEP * steps))
    if turn is not None and np.linalg.norm(turn) > STILL_ANGLE:
        action[3:6] = _within_reach(turn / (RADIANS_PER_STEP * steps))
    action[6] = gripper
    return action


def _within_reach(action: Vector) -> Vector:
    return action / max(1.0, float(np.abs(action).max()))


def cone_height(distance: float, floor: float, ceiling: float) -> float:
    """Height to have at a horizontal distance from the target: a cone around it, cut at `ceiling`.

    From far away that is up, over and down; near by it leaves room for corrections.
    """
    above = _CONE_SLOPE * max(0.0, distance - _CONE_RADIUS)
    return max(floor, min(ceiling, floor + above))


def over_and_down(position: Vector, target: Vector, ceiling: float) -> Vector:
    """Offset of the next move on the way to a target, from above and clear of obstacles.

    Args:
        position: Where what moves is.
        target: Where it shall be.
        ceiling: Height at which the way is free.
    """
    away = target[:2] - position[:2]
    height = cone_height(float(np.linalg.norm(away)), float(target[2]), ceiling)
    rise = height - position[2]
    freedom = np.clip(1 - rise / _FREE_LAG, 0.0, 1.0)
    return np.array([*(away * freedom), rise])


def rotation_between(start: Matrix, end: Matrix) -> Vector:
    """The rotation, axis times angle, that takes one orientation [3, 3] to another."""
    matrix = end @ start.T
    angle = float(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1.0, 1.0)))
    axis = np.array(
        [
            matrix[2, 1] - matrix[1, 2],
            matrix[0, 2] - matrix[2, 0],
            matrix[1, 0] - matrix[0, 1],
        ]
    )
    length = float(np.linalg.norm(axis))
    return axis * (angle / length) if length > 1e-9 else np.zeros(3)


def grip_along(axis: Vector, hand: Matrix) -> Matrix:
    """The orientation of a hand that points down and closes along an axis: of the two, the one
    that is nearer to how the hand is now.
    """
    flat = np.array([axis[0], axis[1], 0.0]) / max(1e-6, float(np.linalg.norm(axis[:2])))
    if flat @ hand[:, 0] < 0:
        flat = -flat
    down = np.array([0.0, 0.0, -1.0])
    return np.stack([flat, np.cross(down, flat), down], axis=1)


def hold_from_the_front(outwards: Vector, hand: Matrix) -> Matrix:
    """The orientation of a hand that points at a front, a little down, and closes across a
    horizontal bar: of the two, the one that is nearer to how the hand is now.

    Args:
        outwards: [3], horizontal, of length 1: what the front faces.
        hand: The hand's orientation.
    """
    up = np.array([0.0, 0.0, 1.0])
    fingers = -np.cos(_FRONT_TILT) * outwards - np.sin(_FRONT_TILT) * up
    closing = np.cos(_FRONT_TILT) * up - np.sin(_FRONT_TILT) * outwards
    holds = [
        np.stack([axis, np.cross(fingers, axis), fingers], axis=1) for axis in (closing, -closing)
    ]
    return min(holds, key=lambda hold: float(np.linalg.norm(rotation_between(hand, hold))))
