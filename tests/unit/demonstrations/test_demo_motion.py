"""Whether a hand moved and turned as a recording's actions say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy.spatial.transform import Rotation

from vlarl_jobs.demonstrations.arm import finger_opening, hand_positions, hand_rotations, has_arm
from vlarl_jobs.demonstrations.motion import (
    METRES_A_UNIT,
    RADIANS_A_UNIT,
    is_absolute,
    motion_fit,
    turn_fit,
)

pytestmark = pytest.mark.sim


def moved(actions: np.ndarray, share: float = 1.0) -> np.ndarray:
    """A hand that follows actions two steps late."""
    late = np.vstack([np.zeros((3, 3)), actions[:-3, :3]])
    return share * METRES_A_UNIT * np.cumsum(late, axis=0)


def smooth(seed: int, steps: int = 80) -> np.ndarray:
    """Actions as of a hand that goes somewhere, and then somewhere else."""
    aims = np.random.default_rng(seed).uniform(-1, 1, size=(steps // 16, 7))
    return np.repeat(aims, 16, axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_hand_tells_how_large_an_action_is(seed: int) -> None:
    actions = smooth(seed)
    fit = motion_fit(actions, moved(actions))
    assert fit is not None
    assert fit.follows
    assert 0.8 < fit.share < 1.1
    for factor in (3.75, 0.05):  # too large; in metres
        scaled = motion_fit(actions * factor, moved(actions))
        assert scaled is not None
        assert not scaled.follows
        assert scaled.share == pytest.approx(fit.share / factor)
    other = motion_fit(-actions, moved(actions))
    assert other is not None
    assert not other.follows


def test_absolute_positions_are_recognised() -> None:
    actions = smooth(1)
    hand = moved(actions)
    told = actions.copy()
    told[:, :3] = np.roll(hand, -1, axis=0) + np.array([0.1, -0.6, 0.9])
    told[-1, :3] = told[-2, :3]
    assert is_absolute(told, hand)
    assert not is_absolute(actions, hand)
    fit = motion_fit(told, hand)
    assert fit is None or not fit.follows


def test_too_little_motion_tells_nothing() -> None:
    assert motion_fit(smooth(0)[:8], moved(smooth(0))[:8]) is None
    assert motion_fit(np.zeros((50, 7)), np.zeros((50, 3))) is None


def turned(actions: np.ndarray, share: float = 1.0, sway: float = 0.0) -> np.ndarray:
    """Rotations [T, 3, 3] of a hand that follows actions two steps late, and sways."""
    late = np.vstack([np.zeros((3, 3)), actions[:-3, 3:6]])
    rotations = [np.eye(3)]
    for turn in Rotation.from_rotvec(share * RADIANS_A_UNIT * late[1:]).as_matrix():
        rotations.append(turn @ rotations[-1])
    swayed = sway * np.sin(np.arange(len(actions)))[:, None] * np.array([1.0, 0, 0])
    return Rotation.from_rotvec(swayed).as_matrix() @ np.stack(rotations)


@pytest.mark.parametrize("seed", range(5))
def test_the_hand_tells_how_large_a_rotation_is(seed: int) -> None:
    actions = smooth(seed)
    fit = turn_fit(actions, turned(actions))
    assert fit is not None
    assert fit.told
    assert fit.fits
    assert 0.8 < fit.share < 1.1
    for factor in (10.0, 0.1):  # too large; in radians that the hand turned
        scaled = turn_fit(actions * factor, turned(actions))
        assert scaled is not None
        assert scaled.told
        assert not scaled.fits
        assert scaled.share == pytest.approx(fit.share / factor)
        assert scaled.share == pytest.approx(fit.of(factor).share)
    for share in (0.55, 4.0):  # held near 1; single steps
        other = turn_fit(actions, turned(actions, share))
        assert other is not None
        assert other.fits


def test_a_hand_that_only_sways_was_not_told_to_turn_far() -> None:
    """Of which way it was told to turn it shows nothing, but it can't have been far."""
    actions = 0.02 * smooth(0)
    swaying = turned(actions * 0, sway=0.015)
    assert turn_fit(actions, swaying) is None, "too little to tell"
    fit = turn_fit(actions * 50, swaying)
    assert fit is not None
    assert not fit.told
    assert not fit.fits
    assert turn_fit(actions * 0, swaying) is None
    assert turn_fit(smooth(0)[:8], swaying[:8]) is None, "too short"
    still = turn_fit(actions * 50, np.broadcast_to(np.eye(3), swaying.shape))
    assert still is not None
    assert (still.reach, still.fits) == (0, False)


def test_the_arms_kinematics_are_its_makers() -> None:
    """The Panda with all joints at 0: the flange is 0.088 m ahead and 0.926 m up, as published."""
    states = np.zeros((1, 20))
    x, y, z = hand_positions(states)[0]
    assert x == pytest.approx(0.088)
    assert y == pytest.approx(0)
    assert z == pytest.approx(0.926 - 0.097)  # the gripping point lies below: the hand looks down
    assert finger_opening(np.array([[0] * 8 + [0.04, -0.04]]))[0] == pytest.approx(0.08)
    assert has_arm(states)
    assert not has_arm(np.ones((3, 20)))
    assert not has_arm(np.zeros((3, 6)))
    np.testing.assert_allclose(hand_rotations(states)[0], np.diag([1, -1, -1]), atol=1e-12)
    turned_base = states.copy()
    turned_base[0, 1] = 0.3
    between = hand_rotations(turned_base)[0] @ hand_rotations(states)[0].T
    np.testing.assert_allclose(Rotation.from_matrix(between).as_rotvec(), [0, 0, 0.3], atol=1e-12)
