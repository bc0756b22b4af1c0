"""Opening a drawer: the hand holds its handle from the front and pulls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlarl_jobs.demonstrations.experts.motion import (
    CLOSED,
    OPEN,
    Matrix,
    Vector,
    hold_from_the_front,
    rotation_between,
    towards,
)
from vlarl_jobs.demonstrations.experts.places import over_all
from vlarl_jobs.demonstrations.experts.scene_view import Drawer, SceneView

_HANDLE = 0.014
"""Metres from its outermost point that are the handle's bar."""

_BEFORE = 0.09
_NEAR = 0.012
_STILL_NEAR = 0.03
_ASIDE = 0.016
_ALIGNED = 0.15
_GRIPPED = 0.03
_HALF_HAND = 0.10
_STRIDE = 0.03
_STILL_ALIGNED = 0.4
_CLEAR = 0.06


@dataclass(frozen=True)
class _Way:
    """From the hand to a handle."""

    offset: Vector
    """[3], metres, to where the hand's point is in the bar's middle."""
    grip: Matrix
    """Orientation of a hand that holds the bar."""
    misfit: Vector
    """Rotation, axis times angle, that the hand needs for it."""

    @property
    def ahead(self) -> float:
        """Metres along the fingers."""
        return float(self.offset @ self.grip[:, 2])

    @property
    def aside(self) -> float:
        """Metres across them."""
        return float(np.linalg.norm(self.offset - self.ahead * self.grip[:, 2]))

    @property
    def turned(self) -> float:
        """Radians."""
        return float(np.linalg.norm(self.misfit))


def open_drawer(sight: SceneView, drawer: Drawer, repeat: int) -> Vector:
    """The next action that opens a drawer: before its handle, onto it, close, pull."""
    way = _way(sight, drawer)
    if way.aside < _ASIDE and abs(way.ahead) < _STILL_NEAR and sight.opening < _GRIPPED:
        return towards(way.offset + _STRIDE * drawer.outwards, CLOSED, repeat, way.misfit)
    if way.turned < _ALIGNED and way.aside < _ASIDE and way.ahead < _BEFORE + _NEAR:
        gripper = CLOSED if abs(way.ahead) < _NEAR else OPEN
        return towards(way.offset, gripper, repeat, way.misfit)
    before = sight.hand_position + way.offset - _BEFORE * way.grip[:, 2]
    return towards(over_all(sight, before, above=_HALF_HAND), OPEN, repeat, way.misfit)


def let_go(sight: SceneView, drawer: Drawer, repeat: int) -> Vector | None:
    """The next action that takes the hand off a handle, back the way it came; none: it is off."""
    way = _way(sight, drawer)
    if way.turned > _STILL_ALIGNED or way.aside > _STILL_NEAR or way.ahead > _CLEAR:
        return None
    return towards(-_STRIDE * way.grip[:, 2], OPEN, repeat)


def _way(sight: SceneView, drawer: Drawer) -> _Way:
    along = drawer.points @ drawer.outwards
    bar = drawer.points[along > along.max() - _HANDLE]
    grip = hold_from_the_front(drawer.outwards, sight.hand_rotation)
    return _Way(
        offset=(bar.min(axis=0) + bar.max(axis=0)) / 2 - sight.hand_position,
        grip=grip,
        misfit=rotation_between(sight.hand_rotation, grip),
    )
