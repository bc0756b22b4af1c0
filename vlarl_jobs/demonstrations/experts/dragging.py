"""Moving something flat that can't be held: the closed hand presses on it and takes it along."""

from __future__ import annotations

import numpy as np

from vlarl_jobs.demonstrations.experts.goals import Goal
from vlarl_jobs.demonstrations.experts.grasps import TIP
from vlarl_jobs.demonstrations.experts.motion import CLOSED, Vector, towards
from vlarl_jobs.demonstrations.experts.places import over_all, top_below
from vlarl_jobs.demonstrations.experts.scene_view import SceneView

_AHEAD = 0.025
_LOW = 0.005
_NEAR = 0.03
_PRESS = 0.015
_STRIDE = 0.04
_TIP_RADIUS = 0.012


def drag(sight: SceneView, goal: Goal, repeat: int) -> Vector:
    """The next action that brings a thing to a place beside it, over the same surface."""
    hand, thing = sight.hand_position, sight.position(goal.subject)
    way = sight.position(goal.place or goal.subject)[:2] - thing[:2]
    direction = way / max(1e-6, float(np.linalg.norm(way)))
    # Within its rim, towards where it goes: what is pulled follows, what is pushed turns away.
    spot = np.array([*(thing[:2] + _AHEAD * direction), 0.0])
    spot[2] = top_below(sight.points(goal.subject), spot, radius=_TIP_RADIUS) + TIP
    off = spot - hand
    if np.linalg.norm(off[:2]) < _NEAR and -off[2] < _LOW:
        return towards(np.array([*(_STRIDE * direction), off[2] - _PRESS]), CLOSED, repeat)
    return towards(over_all(sight, spot), CLOSED, repeat)
