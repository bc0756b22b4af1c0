"""Picking something up and putting it somewhere: what to do follows from what can be seen."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from vlarl_jobs.demonstrations.experts.motion import (
    CLOSED,
    CLOSING_RISE,
    COASTING_STEPS,
    LIFTING_RISE,
    METRES_PER_STEP,
    OPEN,
    Vector,
    over_and_down,
    towards,
)

LIFTED = 0.01
"""Metres above its rest from which something counts as held, and is carried fast."""

_TAKEN_AWAY = 0.03
_OFF_GROUND = 0.002

OPENED = 0.072
"""Metres between the fingers from which the hand counts as open."""

_AT_GRASP = 0.011
_AT_GRASP_HEIGHT = 0.006
_STILL_AT_GRASP = 0.022
_STILL_AT_GRASP_HEIGHT = 0.025
_AT_GRASP_ANGLE = 0.15
_OVER_PLACE = 0.016
_DOWN = 0.018
_STRIDE_OUT = 0.02


class Phase(enum.Enum):
    """What the hand does."""

    APPROACH = "approach"
    CLOSE = "close"
    CARRY = "carry"
    RELEASE = "release"


@dataclass(frozen=True)
class Situation:
    """What the phase follows from. Positions are of points, in metres."""

    hand: Vector
    opening: float
    """Between the fingers."""
    grasp: Vector
    """Where the hand should be to hold the thing where it is now."""
    turn: Vector
    """Rotation, axis times angle, that the hand needs to hold it so."""
    tilt: Vector
    """Rotation that it needs to point straight down."""
    thing: Vector
    """The thing itself."""
    rest: Vector
    """Where it rested last."""
    supported: bool
    """Whether it touches anything but the hand."""
    occupied: bool
    """Whether the fingers touch something else."""
    place: Vector
    """Where the thing shall be."""
    free_hand: float
    """Height of the hand at which the way to the thing is free."""
    free_thing: float
    """Height of the thing at which the way to its place is free."""
    way_out: Vector
    """[3], horizontal, of length 1: where nothing is above the hand; zeros: nothing is now."""


def phase_of(situation: Situation) -> Phase:
    """What to do."""
    offset = situation.grasp - situation.hand
    aside, above = float(np.linalg.norm(offset[:2])), abs(float(offset[2]))
    near = aside < _AT_GRASP and above < _AT_GRASP_HEIGHT
    turned = float(np.linalg.norm(situation.turn)) < _AT_GRASP_ANGLE
    still_near = aside < _STILL_AT_GRASP and above < _STILL_AT_GRASP_HEIGHT
    holding = still_near and situation.opening < OPENED
    if holding and _taken(situation):
        return Phase.RELEASE if _in_place(situation) else Phase.CARRY
    if holding or (near and turned):
        return Phase.CLOSE
    # What was put down before must not come along.
    letting_go = situation.occupied and situation.opening < OPENED
    return Phase.RELEASE if letting_go else Phase.APPROACH


def _taken(situation: Situation) -> bool:
    """Whether a thing that is held has left where it was."""
    moved = situation.thing - situation.rest
    return bool(moved[2] > LIFTED or np.linalg.norm(moved[:2]) > _TAKEN_AWAY)


def _in_place(situation: Situation) -> bool:
    off = situation.place - situation.thing
    over = float(np.linalg.norm(off[:2])) < _OVER_PLACE
    return over and (situation.supported or float(off[2]) > -_DOWN)


def act(situation: Situation, repeat: int) -> Vector:
    """The action, float64[7]."""
    match phase_of(situation):
        case Phase.APPROACH:
            move = over_and_down(situation.hand, situation.grasp, situation.free_hand)
            return towards(move, OPEN, repeat, situation.turn)
        case Phase.CLOSE:
            # Never an action of zeros: a policy that has learnt to close where nothing moves
            # freezes there.
            lifting = situation.thing[2] - situation.rest[2] > _OFF_GROUND
            speed = LIFTING_RISE if lifting else CLOSING_RISE
            rise = speed * METRES_PER_STEP * (repeat + COASTING_STEPS)
            aside = _STRIDE_OUT * situation.way_out if lifting else np.zeros(3)
            return towards(aside + np.array([0.0, 0.0, rise]), CLOSED, repeat)
        case Phase.CARRY if situation.way_out.any():
            return towards(_STRIDE_OUT * situation.way_out, CLOSED, repeat, situation.tilt)
        case Phase.CARRY:
            move = over_and_down(situation.thing, situation.place, situation.free_thing)
            return towards(move, CLOSED, repeat, situation.tilt)
        case Phase.RELEASE:
            return towards(np.zeros(3), OPEN, repeat)
