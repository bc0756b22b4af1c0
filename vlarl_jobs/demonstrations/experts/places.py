"""Where something is to be put, and how high the way there must lead."""

from __future__ import annotations

import numpy as np

from vlarl_jobs.demonstrations.experts.goals import Goal
from vlarl_jobs.demonstrations.experts.motion import Points, Vector, over_and_down
from vlarl_jobs.demonstrations.experts.scene_view import SceneView

PRESS = 0.004
"""Metres that something is lowered below its place, so that it surely touches."""

FOOTPRINT = 0.03
"""Metres around a spot that count as under what stands there."""

_MARGIN = 0.03
_CORRIDOR = 0.11
_NEIGHBOUR = 0.012


def place_for(sight: SceneView, goal: Goal) -> Vector:
    """Where the subject of an on(...) or in(...) goal shall be, [3]."""
    target = goal.place or goal.subject
    points = sight.points(goal.subject)
    origin = sight.position(goal.subject)
    above_bottom = float(origin[2] - points[:, 2].min())
    if not sight.is_region(target):
        spot = sight.position(target)
        support = top_below(sight.points(target), spot)
        return np.array([spot[0], spot[1], support + above_bottom - PRESS])
    centre = sight.position(target)
    if goal.predicate == "in":
        return centre
    spot = _free_spot(sight, goal.subject, target)
    owner = sight.owner(target)
    support = float(centre[2])
    if owner is not None:
        support = max(support, top_below(sight.points(owner), spot, support + 0.03))
    return np.array([spot[0], spot[1], support + above_bottom - PRESS])


def top_below(
    points: Points, spot: Vector, limit: float = np.inf, radius: float = FOOTPRINT
) -> float:
    """Height of the highest point around a spot that isn't above a limit."""
    here = np.linalg.norm(points[:, :2] - spot[:2], axis=1) < radius
    heights = points[here & (points[:, 2] < limit), 2]
    return float(heights.max()) if len(heights) else float(spot[2])


def _free_spot(sight: SceneView, subject: str, region: str) -> Vector:
    """The spot of a region nearest to its centre where nothing else stands."""
    centre, axes = sight.position(region), sight.region_rotation(region)
    half = np.maximum(sight.region_half_sizes(region)[:2] - 0.01, 0.0)
    shape = sight.points(subject) - sight.position(subject)
    others = [sight.points(name) for name in sight.objects if name != subject]
    crowd = np.concatenate([np.zeros((0, 3)), *others])
    crowd = crowd[np.linalg.norm(crowd[:, :2] - centre[:2], axis=1) < 0.3]
    radius = float(np.linalg.norm(shape[:, :2], axis=1).max()) + _NEIGHBOUR
    grid = np.array([(u, v) for u in np.linspace(-1, 1, 9) for v in np.linspace(-1, 1, 9)])
    offsets = grid * half
    spots = centre[:2] + offsets @ axes[:2, :2].T
    order = np.argsort(np.linalg.norm(offsets, axis=1), kind="stable")
    clear = [_clearance(crowd, spots[number]) for number in order]
    for number, distance in zip(order, clear, strict=True):
        if distance > radius:
            return np.array([*spots[number], centre[2]])
    best = order[int(np.argmax(clear))]
    return np.array([*spots[best], centre[2]])


def _clearance(crowd: Points, spot: Vector) -> float:
    if not len(crowd):
        return np.inf
    return float(np.linalg.norm(crowd[:, :2] - spot, axis=1).min())


def over_all(sight: SceneView, target: Vector, above: float = 0.0) -> Vector:
    """Offset of the hand's next move to a target, from above and clear of all that stands there.

    Args:
        sight: The scene.
        target: [3], where the hand's point shall be.
        above: Metres of more height on the way.
    """
    hand = sight.hand_position
    free = free_height(sight.all_points(), hand, target, float(target[2]))
    return over_and_down(hand, target, free + above)


def free_height(obstacles: Points, start: Vector, end: Vector, lowest: float) -> float:
    """Height above everything that lies between two places, at least `lowest`, with a margin."""
    way = end[:2] - start[:2]
    length = float(np.linalg.norm(way)) + 1e-9
    along = np.clip((obstacles[:, :2] - start[:2]) @ way / length**2, 0, 1)
    off = np.linalg.norm(obstacles[:, :2] - (start[:2] + along[:, None] * way), axis=1)
    heights = obstacles[off < _CORRIDOR, 2]
    return max(lowest, float(heights.max()) if len(heights) else lowest) + _MARGIN
