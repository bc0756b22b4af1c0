"""One expert for all tasks: it brings about the first goal that doesn't hold."""

from __future__ import annotations

import numpy as np

from vlarl_jobs.demonstrations.experts.goals import Goal, require_expert
from vlarl_jobs.demonstrations.experts.motion import OPEN, Vector, towards
from vlarl_jobs.demonstrations.experts.putting import Putting
from vlarl_jobs.demonstrations.experts.reaching import reach, target_point
from vlarl_jobs.demonstrations.experts.scene_view import SceneView
from vlarl_jobs.demonstrations.experts.turning import turn_on


class Expert:
    """Acts in one episode.

    Args:
        sight: The scene that it acts in.
        repeat: Control steps for which each of its actions is held.

    Raises:
        NoExpertError: it doesn't know one of the scene's goals.
    """

    def __init__(self, sight: SceneView, repeat: int) -> None:
        require_expert(sight.goals)
        self._sight = sight
        self._repeat = repeat
        self._putting = Putting(sight, repeat)

    def act(self) -> Vector:
        """The action for the scene as it is now, float64[7] in the units of the dataset."""
        for goal in self._sight.goals:
            if not self._sight.holds(goal):
                return self._towards(goal)
        return towards(np.zeros(3), OPEN, self._repeat)

    def _towards(self, goal: Goal) -> Vector:
        if goal.predicate in ("reachedabove", "nearabove"):
            return reach(self._sight, goal, self._repeat)
        if goal.predicate == "turnon":
            return turn_on(self._sight, goal, self._repeat)
        return self._putting.act(goal)


def goal_point(sight: SceneView, goal: Goal) -> Vector:
    """Where a goal happens: the point to reach, the place to put something, the part to move."""
    if goal.predicate in ("reachedabove", "nearabove"):
        return target_point(sight, goal)
    return sight.position(goal.place or goal.subject)
