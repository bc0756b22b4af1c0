"""Whether a recorded hand moved and turned as its actions say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vlarl_jobs.demonstrations.steps import Array

METRES_A_UNIT = 0.0115
"""What the hand moves in a control step for each unit of translation: 0.0107 to 0.0121 in
demonstrations of people and of our expert."""

RADIANS_A_UNIT = 0.115
"""What the hand turns in a control step for each unit of rotation that is held: 0.11 to 0.13."""

LEAST_TURNED, MOST_TURNED = 0.4, 3.0
"""How many times that it turns: the least where 1 is held, the most where single steps are turned,
since OSC_POSE goes on to its last aim while no rotation is asked for."""

_WINDOW = 4
"""Control steps over which motion is compared: the arm lags by one or two."""

_CLEAR_TURN = 0.05
"""Radians in a window from which turning tells anything: a hand that only moves sways by 0.026."""

_FOLLOWS = 0.5
"""Correlation from which actions are what moved the hand."""


@dataclass(frozen=True)
class Fit:
    """How a hand's motion follows actions."""

    share: float
    """Metres that it moved for each unit, against what the arm does; 1: as commanded."""
    correlation: float
    """Of commanded and recorded motion, -1 to 1."""

    @property
    def follows(self) -> bool:
        """Whether the actions are what moved the hand."""
        return self.correlation >= _FOLLOWS and 0.4 <= self.share <= 2.5


@dataclass(frozen=True)
class Turn:
    """How a hand's turning follows actions."""

    share: float
    """Radians that it turned for each unit, against what the arm does; 1: as commanded."""
    reach: float
    """How far it turned against how far it was told to, whatever the direction."""
    correlation: float
    """Of commanded and recorded turning, -1 to 1."""

    @property
    def told(self) -> bool:
        """Whether the actions are what turned the hand, if by another measure."""
        return self.correlation >= _FOLLOWS

    @property
    def fits(self) -> bool:
        """Whether the hand can have turned so by these actions. What sways it is no measure of
        them, but it can't have stood still.
        """
        return 0.35 <= self.share <= 6 if self.told else self.reach >= 0.25

    @property
    def measure(self) -> float:
        """How many times as far as commanded it turned."""
        return self.share if self.told else self.reach

    def of(self, factor: float) -> Turn:
        """The same for actions that are so many times as large."""
        return Turn(self.share / factor, self.reach / factor, self.correlation)


def motion_fit(actions: Array, hand: Array) -> Fit | None:
    """How a hand's positions [T, 3] follow the actions [T, 7]; None: too little moves to tell."""
    steps = len(hand) - _WINDOW
    if steps < 2 * _WINDOW:
        return None
    commanded = METRES_A_UNIT * _in_windows(actions[:, :3])
    moved = hand[_WINDOW:] - hand[:-_WINDOW]
    product = float((commanded * moved).sum())
    squares = float((commanded**2).sum()), float((moved**2).sum())
    if max(squares) < steps * 0.002**2:
        return None
    if not min(squares):
        return Fit(share=0.0 if squares[0] else np.inf, correlation=0.0)
    return Fit(product / squares[0], product / float(np.sqrt(squares[0] * squares[1])))


def turn_fit(actions: Array, rotations: Array) -> Turn | None:
    """How a hand's rotations [T, 3, 3] follow the actions [T, 7]; None: too little turns, or is to
    be turned, to tell.
    """
    steps = len(rotations) - _WINDOW
    if steps < 2 * _WINDOW:
        return None
    commanded = RADIANS_A_UNIT * _in_windows(actions[:, 3:6])
    between = rotations[_WINDOW:] @ rotations[:-_WINDOW].transpose(0, 2, 1)
    turned = Rotation.from_matrix(between).as_rotvec()
    product = float((commanded * turned).sum())
    squares = float((commanded**2).sum()), float((turned**2).sum())
    if max(squares) < steps * _CLEAR_TURN**2 or not squares[0]:
        return None
    reach = float(np.sqrt(squares[1] / squares[0]))
    correlation = product / float(np.sqrt(squares[0] * squares[1])) if squares[1] else 0.0
    return Turn(product / squares[0], reach, correlation)


def _in_windows(movements: Array) -> Array:
    """Sums of movements [T, 3] over each window [T - window, 3]."""
    sums = np.cumsum(np.vstack([np.zeros(3), movements]), axis=0)
    return np.asarray(sums[_WINDOW:-1] - sums[: -_WINDOW - 1])


def is_absolute(actions: Array, hand: Array) -> bool:
    """Whether the actions [T, 7] say where the hand [T, 3] is, rather than how it moves."""
    told, seen = (values - values.mean(axis=0) for values in (actions[:, :3], hand))
    squares = float((told**2).sum()), float((seen**2).sum())
    if not all(squares):
        return False
    product = float((told * seen).sum())
    correlated = product / float(np.sqrt(squares[0] * squares[1])) > 0.95
    return correlated and 0.8 < product / squares[0] < 1.25
