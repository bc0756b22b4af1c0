"""The experts' decisions, without a simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlarl_jobs.demonstrations.experts.goals import Goal, NoExpertError, read_goals, require_expert
from vlarl_jobs.demonstrations.experts.grasps import find_grasps, half_turn, way_out
from vlarl_jobs.demonstrations.experts.motion import (
    CLOSED,
    COASTING_STEPS,
    METRES_PER_STEP,
    OPEN,
    cone_height,
    hold_from_the_front,
    over_and_down,
    rotation_between,
    towards,
)
from vlarl_jobs.demonstrations.experts.picking import OPENED, Phase, Situation, act, phase_of

NOTHING = np.zeros((0, 3))
BASE = np.array([-0.5, 0.0, 0.0])


def filled_box(centre: list[float], half: list[float]) -> np.ndarray:
    sides = [np.arange(-h, h + 1e-9, 0.004) for h in half]
    return np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 3) + centre


def bowl(centre: list[float], radius: float = 0.055) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 200)
    ring = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    levels = np.arange(0, 0.05, 0.004)
    return np.concatenate([np.c_[ring, np.full(200, z)] for z in levels]) + centre


def test_goals_are_read_in_order() -> None:
    literals = [["Turnon", "flat_stove_1"], ["on", "moka_pot_1", "flat_stove_1_cook_region"]]
    assert read_goals({"goal_state": literals}) == [
        Goal("turnon", "flat_stove_1"),
        Goal("on", "moka_pot_1", "flat_stove_1_cook_region"),
    ]
    assert Goal("on", "a", "b").literal == ["on", "a", "b"]
    require_expert([Goal("on", "a", "b"), Goal("turnon", "a")])
    with pytest.raises(NoExpertError, match=r"close\(a_drawer\); they know on, in, turnon"):
        require_expert([Goal("on", "a", "b"), Goal("close", "a_drawer")])


@given(st.integers(1, 5), st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3))
def test_an_action_goes_where_it_should_within_the_arms_reach(
    repeat: int, offset: list[float]
) -> None:
    wanted = np.array(offset)
    action = towards(wanted, OPEN, repeat)
    assert np.abs(action).max() <= 1
    assert (action[3:6] == 0).all()
    moved = action[:3] * METRES_PER_STEP * (repeat + COASTING_STEPS)
    assert np.linalg.norm(moved) <= np.linalg.norm(wanted) + 1e-12
    np.testing.assert_allclose(np.cross(moved, wanted), 0, atol=1e-12)


def test_the_way_leads_up_over_and_down() -> None:
    target = np.array([0.3, 0.0, 0.0])
    up = over_and_down(np.zeros(3), target, ceiling=0.2)
    np.testing.assert_allclose(up, [0, 0, 0.2])
    over = over_and_down(np.array([0.0, 0.0, 0.2]), target, ceiling=0.2)
    np.testing.assert_allclose(over, [0.3, 0, 0])
    down = over_and_down(np.array([0.3, 0.0, 0.2]), target, ceiling=0.2)
    np.testing.assert_allclose(down, [0, 0, -0.2])


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_cone_never_falls_with_distance(near: float, far: float) -> None:
    near, far = sorted((near, far))
    assert 0.1 <= cone_height(near, 0.1, 0.3) <= cone_height(far, 0.1, 0.3) <= 0.3


@given(st.floats(-3, 3))
def test_a_rotation_takes_one_orientation_to_the_other(angle: float) -> None:
    cosine, sine = np.cos(angle), np.sin(angle)
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    np.testing.assert_allclose(rotation_between(np.eye(3), turned), [0, 0, angle], atol=1e-6)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_handle_is_held_from_the_front(facing: float, yaw: float) -> None:
    outwards = np.array([np.cos(facing), np.sin(facing), 0.0])
    cosine, sine = np.cos(yaw), np.sin(yaw)
    down = np.array([[cosine, sine, 0], [sine, -cosine, 0], [0, 0, -1.0]])
    hold = hold_from_the_front(outwards, down)
    np.testing.assert_allclose(hold.T @ hold, np.eye(3), atol=1e-9)
    assert np.linalg.det(hold) == pytest.approx(1)
    closing, fingers = hold[:, 0], hold[:, 2]
    assert fingers @ outwards < -0.9
    assert -0.4 < fingers[2] < -0.3
    assert abs(closing[2]) > 0.9
    # The other way to hold it is this one turned by half a turn about the fingers.
    other = hold * np.array([-1.0, -1.0, 1.0])
    turn, other_turn = rotation_between(down, hold), rotation_between(down, other)
    assert np.linalg.norm(turn) <= np.linalg.norm(other_turn) + 1e-6


@given(st.floats(-10, 10))
def test_axes_have_no_sign(angle: float) -> None:
    assert -np.pi / 2 < half_turn(angle) <= np.pi / 2 + 1e-9
    assert abs(np.sin(half_turn(angle) - angle)) < 1e-6


def test_a_box_is_held_across_its_short_side() -> None:
    box = filled_box([0.1, 0.2, 0.03], [0.05, 0.02, 0.03])
    best = find_grasps(box, NOTHING, BASE, home_yaw=0.0, own_yaw=0.0, floor=0.0)[0]
    assert abs(best.axis[1]) > 0.9
    np.testing.assert_allclose(best.point[:2], [0.1, 0.2], atol=0.003)
    assert 0.01 < best.point[2] < 0.05
    assert best.cost < 2


def test_a_bowl_too_wide_is_held_by_its_rim() -> None:
    best = find_grasps(bowl([0, 0, 0]), NOTHING, BASE, home_yaw=0.0, own_yaw=0.0, floor=0.0)[0]
    assert np.linalg.norm(best.point[:2]) == pytest.approx(0.055, abs=0.013)
    assert best.cost < 2


def test_a_neighbour_on_one_side_sends_the_hand_to_the_other() -> None:
    wall = filled_box([0.11, 0, 0.1], [0.02, 0.1, 0.1])
    best = find_grasps(bowl([0, 0, 0]), wall, BASE, home_yaw=0.0, own_yaw=0.0, floor=0.0)[0]
    assert best.point[0] < 0.02
    assert best.cost < 2


@pytest.mark.parametrize("seed", range(8))
def test_a_round_thing_is_always_held_on_the_same_side(seed: int) -> None:
    """Of two grasps that are as good, noise must not choose: a policy can't see it."""
    round_thing = bowl([0, 0, 0])
    uneven = round_thing + np.random.default_rng(seed).normal(0, 3e-4, round_thing.shape)
    sideways = np.pi / 2  # the Panda's fingers close from left to right
    best = find_grasps(uneven, NOTHING, BASE, home_yaw=sideways, own_yaw=0.0, floor=0.0)[0]
    assert best.point[1] < -0.03


POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def test_a_hand_comes_out_from_under_a_shelf_to_its_open_side() -> None:
    """The fingers close along y, so that the hand is 20 cm wide there and 7 along x."""
    shelf = filled_box([0.0, -0.1, 0.2], [0.2, 0.05, 0.02])
    hand, beside, below = np.array([0.0, 0.0, 0.1]), np.array([0, 0.1, 0]), np.array([0, 0, 0.1])
    np.testing.assert_allclose(way_out(shelf, hand, POINTING_DOWN), [0, 1, 0], atol=0.05)
    np.testing.assert_array_equal(way_out(shelf - beside, hand, POINTING_DOWN), 0)
    turned = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    np.testing.assert_array_equal(way_out(shelf, hand, turned), 0)
    # What is beside the hand or below it isn't in its way up.
    np.testing.assert_array_equal(way_out(shelf - below, hand, POINTING_DOWN), 0)
    np.testing.assert_array_equal(way_out(NOTHING, hand, POINTING_DOWN), 0)


SITUATION = Situation(
    hand=np.array([0.0, 0.0, 0.3]),
    opening=0.08,
    grasp=np.array([0.1, 0.0, 0.05]),
    turn=np.zeros(3),
    tilt=np.zeros(3),
    thing=np.array([0.1, 0.0, 0.03]),
    rest=np.array([0.1, 0.0, 0.03]),
    supported=True,
    occupied=False,
    place=np.array([0.0, 0.3, 0.05]),
    way_out=np.zeros(3),
    free_hand=0.2,
    free_thing=0.2,
)
"""The hand is open and away."""

AT_GRASP = replace(SITUATION, hand=SITUATION.grasp)
LIFTED = replace(
    AT_GRASP,
    opening=0.02,
    grasp=np.array([0.1, 0.0, 0.15]),
    hand=np.array([0.1, 0.0, 0.15]),
    thing=np.array([0.1, 0.0, 0.13]),
    supported=False,
)
OVER_PLACE = replace(
    LIFTED,
    grasp=np.array([0.0, 0.3, 0.07]),
    hand=np.array([0.0, 0.3, 0.07]),
    thing=np.array([0.0, 0.3, 0.05]),
)


def above(situation: Situation, metres: float) -> np.ndarray:
    return situation.hand + np.array([0, 0, metres])


@pytest.mark.parametrize(
    ("situation", "phase"),
    [
        (SITUATION, Phase.APPROACH),
        (AT_GRASP, Phase.CLOSE),
        (replace(AT_GRASP, turn=np.array([0, 0, 0.5])), Phase.APPROACH),
        # Rising while the fingers close doesn't end the closing; an open hand goes back down.
        (replace(AT_GRASP, opening=0.05, hand=above(AT_GRASP, 0.02)), Phase.CLOSE),
        (replace(AT_GRASP, hand=above(AT_GRASP, 0.02)), Phase.APPROACH),
        # A closed hand that has left the thing behind lets go and tries again.
        (replace(AT_GRASP, opening=0.0, hand=above(AT_GRASP, 0.05)), Phase.APPROACH),
        (LIFTED, Phase.CARRY),
        (replace(LIFTED, thing=np.array([0.1, 0.0, 0.035])), Phase.CLOSE),
        # Lower than where it came from: on the way all the same.
        (replace(LIFTED, rest=np.array([0.3, 0.0, 0.2])), Phase.CARRY),
        (OVER_PLACE, Phase.RELEASE),
        (replace(OVER_PLACE, thing=np.array([0.0, 0.3, 0.1])), Phase.CARRY),
        (replace(OVER_PLACE, thing=np.array([0.0, 0.3, 0.1]), supported=True), Phase.RELEASE),
        (replace(SITUATION, occupied=True, opening=0.03), Phase.RELEASE),
    ],
)
def test_the_phase_follows_from_what_is_seen(situation: Situation, phase: Phase) -> None:
    assert phase_of(situation) is phase


def test_the_gripper_closes_while_rising_slowly() -> None:
    action = act(AT_GRASP, repeat=5)
    assert action[6] == CLOSED
    assert 0 < action[2] < 0.1
    assert (action[:2] == 0).all()
    assert act(replace(AT_GRASP, opening=OPENED - 0.01), repeat=5)[6] == CLOSED
    assert act(LIFTED, repeat=5)[2] > action[2]
    assert act(OVER_PLACE, repeat=5)[6] == OPEN


def test_what_is_held_under_something_comes_out_first() -> None:
    covered = replace(LIFTED, way_out=np.array([0.0, 1.0, 0.0]))
    aside = act(covered, repeat=1)
    assert aside[1] > 0.3
    assert (aside[[0, 2]] == 0).all()
    assert aside[6] == CLOSED
    rising = act(replace(covered, thing=np.array([0.1, 0.0, 0.035])), repeat=1)
    assert rising[1] > 0
    assert rising[2] > 0
