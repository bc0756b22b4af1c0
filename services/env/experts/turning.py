"""Turning a stove on: the closed hand pushes the knob's pointer around."""

from __future__ import annotations

import numpy as np

from services.env.experts.goals import Goal
from services.env.experts.motion import (
    CLOSED,
    Points,
    Vector,
    over_and_down,
    rotation_between,
    towards,
)
from services.env.experts.places import free_height
from services.env.experts.sight import Sight

_RADIUS = 0.030
"""Metres from the knob's axis at which its pointer is pushed."""

_BEHIND = 1.1
"""Radians behind the pointer at which the hand comes down."""

_AHEAD = 0.6
"""Radians ahead of the hand that it pushes towards."""

_DEPTH = 0.012
_LOW = 0.012
_NEAR = 0.02


class Turning:
    """The skill, with what it knows of one episode's knob."""

    def __init__(self, sight: Sight, repeat: int) -> None:
        self._sight = sight
        self._repeat = repeat
        self._upright = sight.hand_rotation

    def act(self, goal: Goal) -> Vector:
        """The next action towards turnon(stove)."""
        sight = self._sight
        knob = sight.part(goal.subject, "button")
        axis, pointer = knob.position, _pointer(knob.points, knob.position)
        height = float(knob.points[:, 2].max()) - _DEPTH
        hand = sight.hand_position
        turn = rotation_between(sight.hand_rotation, self._upright)
        away = hand[:2] - axis[:2]
        lag = _wrap(pointer - float(np.arctan2(away[1], away[0])))
        low = hand[2] < height + _LOW
        close = abs(float(np.linalg.norm(away)) - _RADIUS) < _NEAR
        if low and close and 0.1 < lag < _BEHIND + 0.5:
            ahead = self._on_circle(axis, pointer - lag + _AHEAD, height)
            return towards(ahead - hand, CLOSED, self._repeat, turn)
        start = self._on_circle(axis, pointer - _BEHIND, height)
        everything = np.concatenate([sight.points(name) for name in sight.solids])
        free = free_height(everything, hand, start, float(knob.points[:, 2].max()))
        return towards(over_and_down(hand, start, free), CLOSED, self._repeat, turn)

    def _on_circle(self, axis: Vector, angle: float, height: float) -> Vector:
        x, y = axis[:2] + _RADIUS * np.array([np.cos(angle), np.sin(angle)])
        return np.array([x, y, height])


def _pointer(points: Points, axis: Vector) -> float:
    """Direction of the knob's pointer: where its upper part is furthest from the axis and thin."""
    top = points[points[:, 2] > points[:, 2].max() - 0.01, :2] - axis[:2]
    return float(np.arctan2(*top[np.argmax(np.linalg.norm(top, axis=1))][::-1]))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
