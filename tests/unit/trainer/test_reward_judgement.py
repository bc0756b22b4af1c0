"""The judge's loss and its wrong actions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vlarl.models.openvla.tokens import ActionTokenizer  # noqa: E402
from vlarl.models.statistics import (  # noqa: E402
    ActionStats,
    to_simulator,
)
from vlarl_jobs.reward_model.objective import class_weights, verdict_loss  # noqa: E402
from vlarl_jobs.reward_model.perturbing import Perturbed, perturbed, read_commands  # noqa: E402

pytestmark = pytest.mark.torch


def test_the_loss_is_the_papers_by_hand() -> None:
    """- mean_j log p(verdict | first j tokens), p from two logits."""
    odds = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    counts = torch.tensor([[True, True], [False, True]])
    losses = verdict_loss(odds, torch.tensor([1.0, 0.0]), counts)
    p = 1 / (1 + np.exp(-np.array([0.0, 2.0, 3.0])))
    assert losses[0].item() == pytest.approx(-(np.log(p[0]) + np.log(p[1])) / 2)
    assert losses[1].item() == pytest.approx(-np.log(1 - p[2]))


def test_both_kinds_weigh_alike() -> None:
    labels = np.array([1.0] * 20 + [0.0] * 80, np.float32)
    negative, positive = class_weights(labels, 0.0)
    assert positive * 20 == pytest.approx(negative * 80)
    assert (positive * 20 + negative * 80) / 100 == pytest.approx(1.0)
    # A quarter of the positives are shown as negatives.
    negative, positive = class_weights(labels, 0.25)
    assert positive * 15 == pytest.approx(negative * 85)


TOKENIZER = ActionTokenizer(32000)
LIBERO = [True] * 6 + [False]


def statistics(low: list[float], high: list[float], mask: list[bool]) -> ActionStats:
    return ActionStats.from_json({"q01": low, "q99": high, "min": low, "max": high, "mask": mask})


UNIT = statistics([-1.0] * 6 + [0.0], [1.0] * 6 + [1.0], LIBERO)
# Of policies/reach, whose expert moves forward and down: far from symmetric, and beyond what the
# arm executes.
REACH = statistics(
    [-0.484, -0.822, -1.073, -0.8, -0.8, -0.8, 1.0],
    [1.116, 0.778, 0.527, 0.8, 0.8, 0.8, 1.0],
    LIBERO,
)
MASKED_GRIPPER = statistics([-1.0] * 6 + [0.0], [1.0] * 7, [True] * 7)
ALWAYS_OPEN = statistics([-1.0] * 6 + [0.9], [1.0] * 7, [True] * 7)


def bins(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def draws(count: int, chosen: float, kind: float) -> torch.Tensor:
    """Of samples that are all made wrong in one way; "anywhere" is bins 0, 128 and 255."""
    return torch.tensor([[chosen, kind, 0.0, 0.5, 0.999]] * count)


def made_wrong(
    right: torch.Tensor, kind: float, stats: ActionStats = UNIT, chosen: float = 0.1
) -> Perturbed:
    count = len(right)
    commands = read_commands(TOKENIZER, [stats]).of(torch.zeros(count, dtype=torch.long))
    return perturbed(right, torch.ones(count), draws(count, chosen, kind), 0.3, commands)


def executed(shown: torch.Tensor, stats: ActionStats) -> np.ndarray:
    """By the code that the env service executes actions with."""
    return to_simulator(
        stats.unnormalize(TOKENIZER.decode(shown.numpy() + TOKENIZER.action_ids.start))
    )


# As demonstrations have it: the last bin but one half is 0, closed; the first is 1, open.
CLOSED, OPEN = 128, 0
RIGHT = bins([10, 128, 200, 127, 127, 127, CLOSED], [10, 128, 200, 127, 127, 127, OPEN])


@pytest.mark.parametrize(
    ("kind", "expected", "told"),
    [
        # Turned round: the first token differs.
        (0.0, [246, 128, 56, 127, 127, 127, CLOSED], [0, 1, 1, 1, 1, 1, 1, 1]),
        # Anywhere.
        (0.3, [0, 128, 255, 127, 127, 127, CLOSED], [0, 1, 1, 1, 1, 1, 1, 1]),
        # The gripper: only what has read all tokens can know.
        (0.6, [10, 128, 200, 127, 127, 127, OPEN], [0, 0, 0, 0, 0, 0, 0, 1]),
        # The axes shuffled.
        (0.9, [128, 200, 10, 127, 127, 127, CLOSED], [0, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_each_way_of_being_wrong(kind: float, expected: list[int], told: list[int]) -> None:
    shown = made_wrong(RIGHT, kind)
    assert shown.bins[0].tolist() == expected
    assert shown.labels.tolist() == [0.0, 0.0]
    assert shown.counts[0].int().tolist() == told


@pytest.mark.parametrize("stats", [UNIT, REACH, MASKED_GRIPPER])
def test_the_opposed_gripper_has_the_other_sign_in_the_simulator(stats: ActionStats) -> None:
    every = torch.full((256, 7), 100)
    every[:, -1] = torch.arange(256)
    shown = made_wrong(every, 0.6, stats)
    before, after = (executed(some, stats)[:, -1] for some in (every, shown.bins))
    tells = before != 0  # Exactly a half, which the masked one has, neither opens nor closes.
    assert tells.sum() >= 255
    np.testing.assert_array_equal(after[tells], -before[tells])
    assert torch.equal(shown.bins[tells, :-1], every[tells, :-1])
    assert not shown.labels.any()
    # By tokens that demonstrations have, so that a strange one isn't what tells.
    demonstrated = TOKENIZER.encode(stats.normalize(np.array([[0.0] * 7, [0.0] * 6 + [1.0]])))
    if stats is not REACH:  # Its gripper never moved.
        assert set(shown.bins[tells, -1].tolist()) == set(
            demonstrated[:, -1] - TOKENIZER.action_ids.start
        )


def test_a_gripper_that_only_opens_moves_the_hand_instead() -> None:
    shown = made_wrong(RIGHT, 0.6, ALWAYS_OPEN)
    assert shown.bins[0].tolist() == [0, 128, 255, 127, 127, 127, CLOSED]
    assert not shown.labels.any()


@pytest.mark.parametrize("stats", [UNIT, REACH])
@pytest.mark.parametrize("kind", [0.0, 0.3, 0.9])
def test_what_is_labelled_wrong_is_executed_otherwise(stats: ActionStats, kind: float) -> None:
    """Whatever the right action is; an eighth of the range on one axis at least."""
    drawn = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4000, 7)))
    drawn[:2000, :3] = drawn[:2000, :3] // 16 + 120  # nearly standing still
    shown = made_wrong(drawn, kind, stats)
    before, after = (executed(some, stats).clip(-1, 1) for some in (drawn, shown.bins))
    span = (stats.q99.clip(-1, 1) - stats.q01.clip(-1, 1))[:3]
    away = (np.abs(after - before)[:, :3] / span).max(axis=1)
    wrong = shown.labels.numpy() == 0
    assert wrong.mean() > 0.9
    assert away[wrong].min() > 0.12
    assert torch.equal(shown.bins[~wrong], drawn[~wrong])


def test_turned_round_is_the_opposite_motion_where_the_range_is_not_symmetric() -> None:
    fast = torch.from_numpy(
        TOKENIZER.encode(REACH.normalize(np.array([[0.4, 0.5, -0.4, 0, 0, 0, 1.0]])))
    )
    shown = made_wrong(fast - TOKENIZER.action_ids.start, 0.0, REACH)
    np.testing.assert_allclose(executed(shown.bins, REACH)[0, :3], [-0.4, -0.5, 0.4], atol=0.01)


def test_shuffled_axes_that_are_alike_go_anywhere() -> None:
    shown = made_wrong(bins([10, 20, 41, 0, 0, 0, 9]), 0.9)
    assert shown.bins[0].tolist() == [0, 128, 255, 0, 0, 0, 9]
    shown = made_wrong(bins([10, 10, 45, 0, 0, 0, 9]), 0.9)
    assert shown.bins[0].tolist() == [10, 45, 10, 0, 0, 0, 9]
    assert shown.counts[0].int().tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_an_action_that_stands_still_goes_anywhere() -> None:
    shown = made_wrong(bins([128, 128, 127, 127, 127, 127, OPEN]), 0.0)
    assert shown.bins[0].tolist() == [0, 128, 255, 127, 127, 127, OPEN]
    assert shown.labels.tolist() == [0.0]


def test_what_stays_as_it_is() -> None:
    """Not drawn; a negative; and all tokens count."""
    commands = read_commands(TOKENIZER, [UNIT]).of(torch.zeros(2, dtype=torch.long))
    for labels, chosen in ((torch.ones(2), 0.5), (torch.zeros(2), 0.1)):
        shown = perturbed(RIGHT, labels, draws(2, chosen, 0.0), 0.3, commands)
        assert torch.equal(shown.bins, RIGHT)
        assert torch.equal(shown.labels, labels)
        assert shown.counts.all()


def test_an_action_that_cannot_be_made_wrong_stays_right() -> None:
    """Drawn "anywhere" as nearly where it goes."""
    same = bins([2, 120, 250, 0, 0, 0, 0])
    shown = made_wrong(same, 0.3)
    assert torch.equal(shown.bins, same)
    assert shown.labels.tolist() == [1.0]
    assert shown.counts.all()


def test_each_sample_goes_by_its_own_datasets_statistics() -> None:
    commands = read_commands(TOKENIZER, [UNIT, REACH]).of(torch.tensor([1, 0]))
    shown = perturbed(RIGHT, torch.ones(2), draws(2, 0.1, 0.0), 0.3, commands)
    for row, stats in enumerate((REACH, UNIT)):
        alone = made_wrong(RIGHT[[row]], 0.0, stats)
        assert torch.equal(shown.bins[[row]], alone.bins)
