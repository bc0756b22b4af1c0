"""What a recording's gripper commands mean, told from how its fingers moved."""

from __future__ import annotations

import numpy as np
import pytest

from vlarl_jobs.demonstrations.conventions import (
    Conventions,
    commanded_high,
    fingers_tell,
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
