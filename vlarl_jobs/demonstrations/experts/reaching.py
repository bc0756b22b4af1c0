"""The point above an object: `ReachedAbove` and `NearAbove`."""

from __future__ import annotations

import numpy as np

from vlarl_env.simulators.libero.predicates import HEIGHT_ABOVE
from vlarl_jobs.demonstrations.experts.goals import Goal
from vlarl_jobs.demonstrations.experts.motion import OPEN, Vector, towards
from vlarl_jobs.demonstrations.experts.scene_view import SceneView


def target_point(sight: SceneView, goal: Goal) -> Vector:
    """Where the end effector shall be."""
    above: Vector = np.array([0.0, 0.0, HEIGHT_ABOVE])
    return sight.position(goal.subject) + above


def reach(sight: SceneView, goal: Goal, repeat: int) -> Vector:
    """The action towards the point: straight, with an open gripper."""
    return towards(target_point(sight, goal) - sight.hand_position, OPEN, repeat)
