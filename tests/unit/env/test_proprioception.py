"""What policies read of the arm, by the half-angle formula."""

from __future__ import annotations

import numpy as np
import pytest

from vlarl.proprioception import axis_angle, proprioception


def turn(axis: list[float], angle: float) -> list[float]:
    """The unit quaternion x, y, z, w of a turn: sin and cos of half the angle."""
    return [*(np.sin(angle / 2) * np.array(axis)), np.cos(angle / 2)]


@pytest.mark.parametrize("angle", [1e-6, 0.3, np.pi / 2, np.pi, 3.5, 6.0])
@pytest.mark.parametrize("axis", [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.6, 0.0, 0.8]])
def test_an_axis_times_its_angle(axis: list[float], angle: float) -> None:
    """Above pi, where w is negative, too: no shorter turn is taken for it."""
    expected = angle * np.array(axis)
    np.testing.assert_allclose(axis_angle(turn(axis, angle)), expected, rtol=1e-9, atol=1e-9)


def test_no_turn_is_three_zeros() -> None:
    quaternions = [[0, 0, 0, 1], [0, 0, 0, -1], [0, 0, 0, 1 + 1e-12], turn([0, 0, 1], 0.5)]
    expected = [[0, 0, 0]] * 3 + [[0, 0, 0.5]]
    np.testing.assert_allclose(axis_angle(quaternions), expected, atol=1e-12)


def test_a_state_is_position_turn_and_fingers() -> None:
    state = proprioception([1, 2, 3], turn([0, 1, 0], 2.0), [0.04, -0.04])
    np.testing.assert_allclose(state, [1, 2, 3, 0, 2.0, 0, 0.04, -0.04], atol=1e-12)
    many = proprioception(np.ones((5, 3)), [turn([1, 0, 0], 1.0)] * 5, np.zeros((5, 2)))
    assert many.shape == (5, 8)
