"""Where two fingers that come from above can hold something, from its collision geometry.

Only the fingers' own volumes are looked at: they must be free when the hand is open, and what lies
between the pads when they close must be thin enough. A box is held across, a bowl by its rim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlarl_jobs.demonstrations.experts.motion import Matrix, Points, Vector

WIDEST = 0.070
"""Metres: thickest that is held; the fingers open by 8 cm."""

TIP = 0.010
"""Metres by which the fingers' tips are below the hand's point."""

DEEPEST = 0.030
"""Metres by which the hand's point goes below an object's top: the palm follows 4 cm above."""

_PAD_BELOW, _PAD_ABOVE, _PAD_HALF_WIDTH = 0.006, 0.012, 0.009
_FINGER_INNER, _FINGER_OUTER, _FINGER_HALF_WIDTH, _FINGER_LENGTH = 0.036, 0.062, 0.015, 0.036
_PALM_HALF_LENGTH, _PALM_HALF_WIDTH = 0.10, 0.034
_PALM_MARGIN = 0.012
"""Metres around the palm in which something above it counts as in the way of a hand that rises."""

_EASY_REACH = 0.70
_TIP_CLEARANCE = 0.002
_GAP = 0.008
_SAME_SIDE = 0.3
"""Cost of a metre to the robot's left. A round thing can be held on either side alike, and a policy
can't learn from a picture which one noise has chosen.
"""

_SHIFTS = (0.0, 0.012, -0.012, 0.022, -0.022)
_ASIDE = (0.0, 0.015, -0.015, 0.03, -0.03)


@dataclass(frozen=True)
class Grasp:
    """A way to hold something, in whatever frame the points were given in."""

    point: npt.NDArray[np.float64]
    """[3], where the hand's point is."""
    axis: npt.NDArray[np.float64]
    """[3], the direction along which the fingers close; its sign means nothing."""
    cost: float
    """Lower is better; 2 and more: something is in the way."""


@dataclass(frozen=True)
class _Turned:
    """Points seen along a closing axis."""

    along: npt.NDArray[np.float64]
    across: npt.NDArray[np.float64]
    height: npt.NDArray[np.float64]

    @classmethod
    def of(cls, points: Points, yaw: float) -> _Turned:
        cosine, sine = np.cos(yaw), np.sin(yaw)
        x, y, z = points.T
        return cls(cosine * x + sine * y, cosine * y - sine * x, z)

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Turned:
        return _Turned(self.along[chosen], self.across[chosen], self.height[chosen])


def find_grasps(
    points: Points,
    obstacles: Points,
    base: Vector,
    home_yaw: float,
    own_yaw: float,
    floor: float,
) -> list[Grasp]:
    """All grasps, the best first.

    Args:
        points: What is to be held.
        obstacles: What else is there.
        base: Where the robot stands: an arm that is stretched out has no way to go.
        home_yaw: Angle of the closing axis, in radians, from which turning costs.
        own_yaw: Angle of one of the object's sides.
        floor: Height that the fingers' tips must not go below.
    """
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    near = np.abs(obstacles[:, :2] - centre[:2]).max(axis=1) < np.ptp(points[:, :2]) / 2 + 0.15
    around = np.concatenate([points, obstacles[near]]) - centre
    grasps = []
    for yaw in _yaws(home_yaw, own_yaw):
        own, all_ = _Turned.of(points - centre, yaw), _Turned.of(around, yaw)
        cost = 0.5 * abs(half_turn(yaw - home_yaw))
        axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        side = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        for aside in _ASIDE:
            for along, height, extra in _along_line(own, all_, aside, floor - centre[2]):
                point = centre + along * axis + aside * side + np.array([0.0, 0.0, height])
                reach = float(np.linalg.norm(point[:2] - base[:2]))
                far = 15 * max(0.0, reach - _EASY_REACH)
                left = _SAME_SIDE * float(point[1] - centre[1])
                grasps.append(Grasp(point, axis, cost + extra + far + left))
    return sorted(grasps, key=lambda grasp: grasp.cost)


def way_out(obstacles: Points, hand: Vector, rotation: Matrix) -> Vector:
    """The horizontal direction, [3] of length 1, in which a hand comes out from under obstacles;
    zeros: there are none above it.
    """
    from_hand = obstacles - hand
    above = from_hand[:, 2] > _FINGER_LENGTH
    along = np.abs(from_hand @ rotation[:, 0]) < _PALM_HALF_LENGTH + _PALM_MARGIN
    across = np.abs(from_hand @ rotation[:, 1]) < _PALM_HALF_WIDTH + _PALM_MARGIN
    covering = from_hand[above & along & across, :2]
    if not len(covering):
        return np.zeros(3)
    away = -covering.mean(axis=0)
    return np.array([*(away / max(1e-6, float(np.linalg.norm(away)))), 0.0])


def half_turn(angle: float) -> float:
    """An angle between axes without sign, in (-pi/2, pi/2]."""
    return float(np.pi / 2 - (np.pi / 2 - angle) % np.pi)


def _yaws(home_yaw: float, own_yaw: float) -> Iterable[float]:
    steps = [home_yaw + number * np.pi / 8 for number in range(8)]
    return [*steps, own_yaw, own_yaw + np.pi / 2]


def _along_line(
    own: _Turned, all_: _Turned, aside: float, floor: float
) -> Iterator[tuple[float, float, float]]:
    """Grasps whose closing axis passes at `aside`: place along it, height, cost."""
    lane = np.abs(own.across - aside) < _PAD_HALF_WIDTH
    if not lane.any():
        return
    lowest = max(floor, float(own.height.min())) + TIP + _TIP_CLEARANCE
    height = max(lowest, float(own.height[lane].max()) - DEEPEST)
    pads = (own.height > height - _PAD_BELOW) & (own.height < height + _PAD_ABOVE)
    runs = _runs(own.along[lane & pads])
    above = all_.height > height - TIP
    nearby = np.abs(all_.across - aside) < _PALM_HALF_WIDTH
    rest = all_.where(above & nearby)
    for first in range(len(runs)):
        for last in range(first, len(runs)):
            low, high = runs[first][0], runs[last][1]
            if high - low < WIDEST:
                yield from _shifted(rest, aside, height, low, high)


def _shifted(
    rest: _Turned, aside: float, height: float, low: float, high: float
) -> Iterator[tuple[float, float, float]]:
    middle, half = (low + high) / 2, (high - low) / 2
    for shift in _SHIFTS:
        if abs(shift) + half > _FINGER_INNER - 0.001:
            continue
        blocked = _blocked(rest, middle + shift, aside, height)
        cost = 5 * 2 * half + 8 * abs(shift) + 8 * (abs(aside) + abs(middle))
        yield middle + shift, height, cost + (2 + 0.01 * blocked if blocked else 0)


def _blocked(rest: _Turned, along: float, aside: float, height: float) -> int:
    """Number of points where the open hand would be."""
    off = np.abs(rest.along - along)
    above = rest.height - height
    in_lane = np.abs(rest.across - aside) < _FINGER_HALF_WIDTH
    fingers = in_lane & (off > _FINGER_INNER) & (off < _FINGER_OUTER)
    palm = (above > _FINGER_LENGTH) & (off < _PALM_HALF_LENGTH)
    return int((fingers | palm).sum())


def _runs(along: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Stretches that are solid: first and last place of each."""
    if not len(along):
        return []
    ordered = np.sort(along)
    breaks = np.flatnonzero(np.diff(ordered) > _GAP)
    firsts = [0, *(breaks + 1)]
    lasts = [*breaks, len(ordered) - 1]
    return [(float(ordered[a]), float(ordered[b])) for a, b in zip(firsts, lasts, strict=True)]
