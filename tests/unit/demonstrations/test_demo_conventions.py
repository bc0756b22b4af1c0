"""What a recording's numbers mean, told from how hand and fingers moved."""

from __future__ import annotations

import numpy as np
import pytest

from services.env.demonstrations.arm import finger_opening, hand_positions, has_arm
from services.env.demonstrations.conventions import (
    METRES_A_UNIT,
    Conventions,
    commanded_high,
    fingers_tell,
    is_absolute,
    motion_fit,
    prevailing,
)


def test_a_signed_zero_repeats_the_command_before_it() -> None:
    commands = np.array([0.0, -1, 0, 0.3, 0, -0.2])
    assert commanded_high(commands, signed=True).tolist() == [0, 0, 0, 1, 1, 0]
    assert not commanded_high(np.zeros(3), signed=True).any()
    assert commanded_high(np.array([0, 0.5, 0.6, 1]), signed=False).tolist() == [0, 0, 1, 1]


def test_actions_become_the_simulators() -> None:
    actions = np.array([[0.5, 0, 0, 0.2, 0, 0, 1], [4.0, 0, 0, 0, 0, 0, 0]])
    plain = Conventions(gripper="open-is-1", signed=False).apply(actions)
    assert plain.tolist() == [[0.5, 0, 0, 0.2, 0, 0, -1], [4, 0, 0, 0, 0, 0, 1]]
    scaled = Conventions(signed=False, scale=(0.5, 10.0), clip=True).apply(actions)
    assert scaled.tolist() == [[0.25, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, -1]]


def following(high: np.ndarray, *, open_is_high: bool, held: float = 0.0) -> np.ndarray:
    """Fingers that move 7 mm a step, and close no further than what they hold."""
    opening, now = [], 0.079
    for command in high:
        opening.append(now)
        now += 0.007 if bool(command) == open_is_high else -0.007
        now = min(0.079, max(held, now))
    return np.array(opening)


@pytest.mark.parametrize("open_is_high", [True, False])
@pytest.mark.parametrize("lengths", [(30, 30, 5), (30, 14, 3), (20, 5), (40,), (1, 40)])
def test_fingers_tell_which_command_opens(open_is_high: bool, lengths: tuple[int, ...]) -> None:
    opens = np.concatenate([np.full(n, not turn % 2) for turn, n in enumerate(lengths)])
    high = opens == open_is_high
    expected = "open-is-1" if open_is_high else "closed-is-1"
    for held in (0.0, 0.042):
        assert fingers_tell(high, following(high, open_is_high=open_is_high, held=held)) == expected


def test_fingers_that_follow_nothing_tell_nothing() -> None:
    assert fingers_tell(np.ones(8, np.bool_), np.full(8, 0.079)) is None, "too short"
    high = np.arange(60) > 30
    assert fingers_tell(high, np.full(60, 0.079)) is None, "they never move"
    constant = np.zeros(60, np.bool_)
    assert fingers_tell(constant, following(high, open_is_high=False)) is None, "not by command"


def test_what_nearly_all_demonstrations_say_prevails() -> None:
    assert prevailing([None, "open-is-1", "open-is-1"]) == "open-is-1"
    assert prevailing(["open-is-1"] + ["closed-is-1"] * 3) == "closed-is-1"
    assert prevailing(["open-is-1"] + ["closed-is-1"] * 2) is None
    assert prevailing(["closed-is-1", "open-is-1"]) is None
    assert prevailing([None]) is None


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
