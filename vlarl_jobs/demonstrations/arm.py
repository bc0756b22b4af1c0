"""Where the hand and the fingers are in a recorded state, without a simulator.

Every LIBERO scene begins with the robot, so a flattened state is time, the Panda's seven joints,
its two fingers, and then the rest.
"""

from __future__ import annotations

import numpy as np

from vlarl_jobs.demonstrations.steps import Array

_JOINTS = slice(1, 8)
_FINGERS = slice(8, 10)

_LONGEST_FINGER = 0.045
"""Metres that a finger can be from the middle; its joint ends at 0.04, and the contact is soft."""

_LINKS = (
    (0.0, 0.0, 0.333),
    (0.0, -np.pi / 2, 0.0),
    (0.0, np.pi / 2, 0.316),
    (0.0825, np.pi / 2, 0.0),
    (-0.0825, -np.pi / 2, 0.384),
    (0.0, np.pi / 2, 0.0),
    (0.088, np.pi / 2, 0.0),
)
"""The Panda's links by Craig's parameters, as its maker publishes them: a in metres, alpha in
radians, d in metres."""

_TOOL = 0.107 + 0.097
"""Metres from the last joint along its axis to the flange, and on to robosuite's gripping point."""


def has_arm(states: Array) -> bool:
    """Whether states [T, n] begin as those of a Panda do: two fingers where they can be."""
    if states.shape[1] < _FINGERS.stop:
        return False
    left, right = states[:, _FINGERS].T
    inner, outer = -0.005, _LONGEST_FINGER
    return bool(
        (left > inner).all()
        and (left < outer).all()
        and (-right > inner).all()
        and (-right < outer).all()
    )


def finger_opening(states: Array) -> Array:
    """Metres between the fingers [T] in states [T, n]."""
    left, right = states[:, _FINGERS].T
    return np.asarray(left - right)


def hand_positions(states: Array) -> Array:
    """The gripping point in metres [T, 3] in states [T, n], seen from the robot's base."""
    poses = _hand_poses(states)
    return np.asarray(poses[:, :3, 3] + _TOOL * poses[:, :3, 2])


def hand_rotations(states: Array) -> Array:
    """How the hand is turned [T, 3, 3] in states [T, n], seen from the robot's base."""
    return np.asarray(_hand_poses(states)[:, :3, :3])


def _hand_poses(states: Array) -> Array:
    """The last joint's [T, 4, 4], seen from the robot's base."""
    pose = np.broadcast_to(np.eye(4), (len(states), 4, 4))
    for (a, alpha, d), angle in zip(_LINKS, states[:, _JOINTS].T, strict=True):
        pose = pose @ _link(a, alpha, d, angle)
    return np.asarray(pose)


def _link(a: float, alpha: float, d: float, angle: Array) -> Array:
    """Transforms [T, 4, 4] from one joint to the next, turned by angles [T]."""
    link = np.zeros((len(angle), 4, 4))
    cos, sin = np.cos(angle), np.sin(angle)
    tilt_cos, tilt_sin = np.cos(alpha), np.sin(alpha)
    link[:, 0, 0], link[:, 0, 1], link[:, 0, 3] = cos, -sin, a
    link[:, 1, 0], link[:, 1, 1] = sin * tilt_cos, cos * tilt_cos
    link[:, 2, 0], link[:, 2, 1] = sin * tilt_sin, cos * tilt_sin
    link[:, 1, 2], link[:, 1, 3] = -tilt_sin, -d * tilt_sin
    link[:, 2, 2], link[:, 2, 3] = tilt_cos, d * tilt_cos
    link[:, 3, 3] = 1.0
    return link
