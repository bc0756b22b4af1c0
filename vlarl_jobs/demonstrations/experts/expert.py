"""One expert for all tasks: it brings about the first goal that doesn't hold."""

from __future__ import annotations

import numpy as np

from vlarl_jobs.demonstrations.experts.drawers import let_go, open_drawer
from vlarl_jobs.demonstrations.experts.goals import Goal, NoExpertError, require_expert
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
        for goal in sight.goals:
            if goal.predicate == "open" and sight.drawer(goal.subject) is None:
                raise NoExpertError(f"no expert can open {goal.subject}: they open drawers alone")
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
        at_drawer = self._at_drawer(goal)
        return self._putting.act(goal) if at_drawer is None else at_drawer

    def _at_drawer(self, goal: Goal) -> Vector | None:
        """The action where a drawer must first be opened, or the hand is at its handle."""
        region = _drawers_region(goal)
        if region is None:
            return None
        drawer = self._sight.drawer(region)
        if drawer is None:
            return None
        if not self._sight.holds(Goal("open", region)):
            return open_drawer(self._sight, drawer, self._repeat)
        return let_go(self._sight, drawer, self._repeat)


def _drawers_region(goal: Goal) -> str | None:
    """The region that must be open for a goal if it is a drawer's; none: the goal has no such."""
    if goal.predicate == "open":
        return goal.subject
    return goal.place if goal.predicate == "in" else None


def goal_point(sight: SceneView, goal: Goal) -> Vector:
    """Where a goal happens: the point to reach, the place to put something, the part to move."""
    if goal.predicate in ("reachedabove", "nearabove"):
        return target_point(sight, goal)
    return sight.position(goal.place or goal.subject)
