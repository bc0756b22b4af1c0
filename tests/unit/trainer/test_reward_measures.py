"""AUC and calibration against their definitions, summed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from vlarl_jobs.reward_model.measures import auc, reliability

pytestmark = pytest.mark.torch


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 5 for score, _ in pairs])
    labels = np.array([label for _, label in pairs])
    wins = [
        1.0 if one > other else 0.5 if one == other else 0.0
        for one in scores[labels]
        for other in scores[~labels]
    ]
    found = auc(scores, labels)
    if wins:
        assert found == pytest.approx(np.mean(wins))
    else:
        assert np.isnan(found)


def test_reliability_by_hand() -> None:
    """Two bins of ten: 0.1 to 0.2 with a third positive, 0.9 to 1 all positive."""
    probabilities = np.array([0.11, 0.13, 0.15, 0.95, 1.0])
    labels = np.array([True, False, False, True, True])
    found = reliability(probabilities, labels)
    assert found.predicted == pytest.approx([0.13, 0.975])
    assert found.observed == pytest.approx([1 / 3, 1.0])
    assert found.count.tolist() == [3, 2]
    assert found.error == pytest.approx((3 * (1 / 3 - 0.13) + 2 * 0.025) / 5)
