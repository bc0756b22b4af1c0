"""Labels of hand-made trajectories, whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("safetensors")

from hypothesis import given
from hypothesis import strategies as st

from vlarl.config import LabelConfig
from vlarl.data.dataset import DatasetError, Frames, Motion, TaskSamples
from vlarl_jobs.reward_model.labels import (
    CONTROL_RATE,
    key_frames,
    label_episode,
    label_task,
    milestones,
    speed,
)

CONFIG = LabelConfig(
    gripper_change=0.01,
    gripper_settle_seconds=0.15,  # 3 control steps
    slow_share=0.1,
    slow_floor=0.01,
    lead_seconds=0.5,  # 10 control steps
    milestones_count=False,
)
NONE = np.zeros(0, np.int64)


def opening(*stretches: tuple[float, int]) -> np.ndarray:
    """Centimetres between the fingers, each for so many control steps."""
    return np.concatenate([np.full(count, value / 100) for value, count in stretches])


def hand(*stretches: tuple[float, int]) -> np.ndarray:
    """Positions along x from speeds in metres a second, each for so many control steps."""
    speeds = np.concatenate([np.full(count, value) for value, count in stretches])
    x = np.concatenate([[0.0], np.cumsum(speeds[:-1]) / CONTROL_RATE])
    return np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1)


@pytest.mark.parametrize(
    ("fingers", "expected"),
    [
        (opening((8, 20)), []),
        (opening((8, 10), (2, 10)), [10]),
        (opening((2, 10), (8, 10)), [10]),
        (opening((8, 10), (2, 10), (8, 5)), [10, 20]),
        # A thick thing is held at 6 cm; 2 cm are significant, 0.9 aren't.
        (opening((8, 10), (6, 10)), [10]),
        (opening((8, 10), (7.1, 10)), []),
        # Slow: 0.2 cm a step; the fifth step has come back by 1 cm.
        (np.concatenate([opening((8, 10)), 0.08 - 0.0020001 * np.arange(1, 31)]), [14]),
        # Trembling: for two steps only, which is less than 0.15 s.
        (opening((8, 10), (2, 2), (8, 10)), []),
        # It may not be long enough to know at the end; what is seen counts.
        (opening((8, 10), (2, 1)), [10]),
        # A held thing that gives way goes on closing; opening counts from the narrowest.
        (opening((8, 5), (4, 5), (2, 5), (2.9, 5), (3.1, 5)), [5, 20]),
    ],
)
def test_milestones(fingers: np.ndarray, expected: list[int]) -> None:
    assert milestones(fingers, CONFIG).tolist() == expected


def test_speed_is_metres_a_second() -> None:
    assert speed(hand((0.4, 10))) == pytest.approx(np.full(10, 0.4))
    assert speed(np.zeros((1, 3))).tolist() == [0.0]


@pytest.mark.parametrize(
    ("speeds", "cuts", "expected"),
    [
        # Fast all the way: only the end.
        ([1.0] * 10, [], [10]),
        # A rest in the middle, slowest in its third state.
        ([1.0] * 5 + [0.05, 0.04, 0.01, 0.06] + [1.0] * 5, [], [7, 14]),
        # It begins at rest, which nothing led to; it ends at rest, which is the end.
        ([0.0] * 4 + [1.0] * 4 + [0.0] * 4, [], [12]),
        # 0.12 is above the 0.1 that it rests at, but not above the 0.15 that it moves at.
        ([1.0] * 3 + [0.05, 0.12, 0.04] + [1.0] * 3, [], [5, 9]),
        ([1.0] * 3 + [0.05, 0.16, 0.04] + [1.0] * 3, [], [3, 5, 9]),
        # A rest in which the fingers close is cut in two; the second part isn't led to.
        ([1.0] * 4 + [0.02, 0.01, 0.0, 0.0] + [1.0] * 4, [6], [5, 12]),
        # All slower than the floor: one long rest.
        ([0.009] * 8, [], [8]),
    ],
)
def test_key_frames(speeds: list[float], cuts: list[int], expected: list[int]) -> None:
    found = key_frames(np.array(speeds), np.array(cuts, np.int64), CONFIG)
    assert found.tolist() == expected


def test_an_episode_by_hand() -> None:
    """There in 40 steps, a rest of 10 in which the fingers close, and away in 30."""
    moves = hand((0.4, 40), (0.0, 10), (0.4, 30))
    fingers = opening((8, 45), (2, 35))
    starts = np.arange(0, 80, 5)
    labels = label_episode(moves, fingers, starts, CONFIG)
    assert labels.milestones.tolist() == [45]
    # The positions' differences are central, so the first step of rest still moves.
    assert labels.key_frames.tolist() == [41, 80]
    assert labels.segment.tolist() == [0] * 9 + [1] * 7
    # 31 to 40 lead to 41, and 70 to 79 to the end.
    positive = starts[labels.positive].tolist()
    assert positive == [35, 40, 70, 75]


def test_actions_before_a_milestone_do_not_lead_beyond_it() -> None:
    """No rest before the fingers close at 20; the one at 24 is of the next segment."""
    moves = hand((0.4, 23), (0.0, 4), (0.4, 20))
    labels = label_episode(moves, opening((8, 20), (2, 27)), np.arange(47), CONFIG)
    assert labels.key_frames.tolist() == [24, 47]
    assert np.flatnonzero(labels.positive).tolist() == [20, 21, 22, 23, *range(37, 47)]


def test_actions_that_lead_to_a_milestone_count_if_wanted() -> None:
    """The fingers close at 45, after five steps at rest."""
    moves = hand((0.4, 40), (0.0, 10), (0.4, 30))
    config = replace_config(milestones_count=True)
    labels = label_episode(moves, opening((8, 45), (2, 35)), np.arange(80), config)
    assert labels.key_frames.tolist() == [41, 45, 80]
    assert np.flatnonzero(labels.positive).tolist() == [*range(31, 45), *range(70, 80)]


@given(
    st.lists(st.floats(0, 0.08), min_size=1, max_size=60),
    st.lists(st.floats(-0.05, 0.05), min_size=60, max_size=60),
    st.integers(1, 6),
)
def test_labels_of_anything_are_consistent(
    fingers: list[float], steps: list[float], repeat: int
) -> None:
    count = len(fingers)
    x = np.cumsum(steps[:count])
    moves = np.stack([x, x, x], axis=1)
    starts = np.arange(0, count, repeat)
    config = replace_config(milestones_count=repeat % 2 == 0)
    labels = label_episode(moves, np.array(fingers), starts, config)
    assert (np.diff(labels.milestones) > 0).all()
    assert (np.diff(labels.key_frames) > 0).all()
    assert labels.key_frames[-1] == count
    assert labels.segment[0] == 0
    assert (np.diff(labels.segment) >= 0).all()
    if labels.segment[-1] == len(labels.milestones):
        assert labels.positive[-1]


def test_turned_round_in_space_nothing_changes() -> None:
    moves = hand((0.4, 20), (0.0, 6), (0.2, 20), (0.0, 6), (0.3, 9))
    fingers = opening((8, 24), (1, 37))
    starts = np.arange(0, 61, 3)
    before = label_episode(moves, fingers, starts, CONFIG)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    after = label_episode(moves @ turn + 5.0, fingers, starts, CONFIG)
    for name, value in vars(before).items():
        np.testing.assert_array_equal(getattr(after, name), value)


def task(motion: Motion | None) -> TaskSamples:
    """Two episodes of 80 and 40 control steps, a sample every 10."""
    return TaskSamples(
        suite="libero_spatial",
        index=3,
        instruction="go",
        frames=Frames.of([b"x"] * 12),
        actions=np.zeros((12, 7), np.float32),
        episodes=np.repeat(np.array([0, 2], np.int32), [8, 4]),
        poses=np.zeros((12, 0), np.float32),
        pose_names=(),
        motion=motion,
    )


def test_episodes_of_a_task_are_labelled_one_by_one() -> None:
    """The demonstration between them missed its goal and has no samples."""
    moves = [hand((0.4, 80)), hand((0.4, 30)), hand((0.4, 40))]
    motion = Motion(
        hand=np.concatenate(moves).astype(np.float32),
        opening=np.concatenate([opening((8, 110)), opening((8, 20), (2, 20))]).astype(np.float32),
        offsets=np.array([0, 80, 110, 150]),
        starts=np.concatenate([np.arange(0, 80, 10), np.arange(0, 40, 10)]).astype(np.int32),
    )
    (one, first), (two, second) = label_task(task(motion), CONFIG)
    assert (one.tolist(), two.tolist()) == (list(range(8)), list(range(8, 12)))
    assert first.milestones.tolist() == []
    assert second.milestones.tolist() == [20]
    assert first.positive.tolist() == [False] * 7 + [True]
    assert second.positive.tolist() == [False] * 3 + [True]


def test_without_motion_there_are_no_labels() -> None:
    with pytest.raises(DatasetError, match="libero_spatial task 3 has no motion"):
        label_task(task(None), CONFIG)


def test_what_counts_can_be_set() -> None:
    fingers = opening((8, 10), (7.1, 10))
    assert milestones(fingers, replace_config(gripper_change=0.005)).tolist() == [10]
    longer = label_episode(
        hand((0.4, 40)), opening((8, 40)), np.arange(40), replace_config(lead_seconds=1.0)
    )
    assert longer.positive.sum() == 20


def replace_config(**values: float) -> LabelConfig:
    return CONFIG.model_copy(update=values)
