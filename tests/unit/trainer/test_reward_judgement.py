"""The judge's loss and its wrong actions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from services.trainer.rprm.judgement import class_weights, verdict_loss  # noqa: E402
from services.trainer.rprm.perturbing import perturbed  # noqa: E402

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


def bins(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def draws(count: int, chosen: float, kind: float) -> torch.Tensor:
    """Of samples that are all made wrong in one way; "anywhere" is bins 0, 128 and 255."""
    return torch.tensor([[chosen, kind, 0.0, 0.5, 0.999]] * count)


RIGHT = bins([10, 128, 200, 127, 127, 127, 255], [10, 128, 200, 127, 127, 127, 255])


@pytest.mark.parametrize(
    ("kind", "expected", "told"),
    [
        # Turned round: the first token differs.
        (0.0, [245, 127, 55, 127, 127, 127, 255], [0, 1, 1, 1, 1, 1, 1, 1]),
        # Anywhere.
        (0.3, [0, 128, 255, 127, 127, 127, 255], [0, 1, 1, 1, 1, 1, 1, 1]),
        # The gripper: only what has read all tokens can know.
        (0.6, [10, 128, 200, 127, 127, 127, 0], [0, 0, 0, 0, 0, 0, 0, 1]),
        # The axes shuffled.
        (0.9, [128, 200, 10, 127, 127, 127, 255], [0, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_each_way_of_being_wrong(kind: float, expected: list[int], told: list[int]) -> None:
    shown = perturbed(RIGHT, torch.ones(2), draws(2, 0.1, kind), share=0.3)
    assert shown.bins[0].tolist() == expected
    assert shown.labels.tolist() == [0.0, 0.0]
    assert shown.counts[0].int().tolist() == told


def test_shuffled_axes_that_are_alike_go_anywhere() -> None:
    shown = perturbed(bins([10, 20, 41, 0, 0, 0, 9]), torch.ones(1), draws(1, 0.1, 0.9), share=0.3)
    assert shown.bins[0].tolist() == [0, 128, 255, 0, 0, 0, 9]
    shown = perturbed(bins([10, 10, 42, 0, 0, 0, 9]), torch.ones(1), draws(1, 0.1, 0.9), share=0.3)
    assert shown.bins[0].tolist() == [10, 42, 10, 0, 0, 0, 9]
    assert shown.counts[0].int().tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_what_stays_as_it_is() -> None:
    still = bins([128, 128, 128, 127, 127, 127, 255], [10, 128, 200, 127, 127, 127, 255])
    # Not drawn; a negative; and all tokens count.
    for labels, chosen in ((torch.ones(2), 0.5), (torch.zeros(2), 0.1)):
        shown = perturbed(still, labels, draws(2, chosen, 0.0), share=0.3)
        assert torch.equal(shown.bins, still)
        assert torch.equal(shown.labels, labels)
        assert shown.counts.all()


def test_an_action_that_cannot_be_made_wrong_stays_right() -> None:
    """Drawn "anywhere" as exactly where it goes."""
    same = bins([0, 128, 255, 0, 0, 0, 0])
    shown = perturbed(same, torch.ones(1), draws(1, 0.1, 0.3), share=0.3)
    assert shown.labels.tolist() == [1.0]
    assert shown.counts.all()
