"""Turning a stove on: the hand holds the knob's ridge and turns with it."""

from __future__ import annotations

import numpy as np

from vlarl_jobs.demonstrations.experts.goals import Goal
from vlarl_jobs.demonstrations.experts.motion import (
    CLOSED,
    OPEN,
    Vector,
    grip_along,
    rotation_between,
    towards,
)
from vlarl_jobs.demonstrations.experts.places import over_all
from vlarl_jobs.demonstrations.experts.scene_view import SceneView

_KNOB = "button"
_DEPTH = 0.018
_NEAR = 0.012
_STILL_NEAR = 0.025
_ALIGNED = 0.15
_GRIPPED = 0.045
_TURN = np.array([0.0, 0.0, 0.6])


def turn_on(sight: SceneView, goal: Goal, repeat: int) -> Vector:
    """The next action towards turnon(stove)."""
    knob = sight.part(goal.subject, _KNOB)
    # The ridge runs along the knob's second axis, so that the fingers close along the first.
    grip = grip_along(knob.rotation[:, 0], sight.hand_rotation)
    misfit = rotation_between(sight.hand_rotation, grip)
    grasp = np.array([*knob.position[:2], float(knob.points[:, 2].max()) - _DEPTH])
    offset = grasp - sight.hand_position
    away = float(np.linalg.norm(offset))
    if away < _STILL_NEAR and sight.opening < _GRIPPED:
        return towards(offset, CLOSED, repeat, _TURN)
    if away < _NEAR and np.linalg.norm(misfit) < _ALIGNED:
        return towards(offset, CLOSED, repeat)
    return towards(over_all(sight, grasp), OPEN, repeat, misfit)
