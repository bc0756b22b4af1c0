"""AUC and calibration against their definitions, summed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from vlarl_jobs.reward_model.measures import auc, reliability
from vlarl_jobs.reward_model.scoring import ScoredTask, fit_returns, moments

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


def test_moments_by_hand() -> None:
    """Three episodes of three, one and two steps, the second of which succeeds."""
    episodes = (np.array([0.1, 0.2, 0.3]), np.array([0.9]), np.array([0.4, 0.5]))
    scored = ScoredTask("made 0", episodes, np.array([False, True, False]))
    first, second, third = moments(scored, count=3)
    assert [one.step for one in (first, second, third)] == [1, 2, 3]
    assert first.scores.tolist() == [0.1, 0.9, 0.4]
    assert first.succeeded.tolist() == [False, True, False]
    assert first.auc == 1.0
    assert second.scores.tolist() == [0.2, 0.5]
    assert np.isnan(second.auc)  # both will fail
    assert third.scores.tolist() == [0.3]
    assert [one.step for one in moments(scored, count=2)] == [1, 3]


def test_the_coefficient_is_the_slope_of_returns_over_probabilities() -> None:
    """A success of three steps returns 0.81, 0.9, 1; a failure of two returns nothing."""
    scored = ScoredTask(
        "reach 0", (np.array([0.2, 0.6, 0.8]), np.array([0.4, 0.1])), np.array([True, False])
    )
    probabilities, returns = [0.2, 0.6, 0.8, 0.4, 0.1], [0.81, 0.9, 1.0, 0.0, 0.0]
    slope, intercept = np.polyfit(probabilities, returns, 1)
    left = np.array(returns) - slope * np.array(probabilities) - intercept
    found = fit_returns(scored, gamma=0.9)
    assert found is not None
    assert found.coefficient == pytest.approx(slope)
    assert found.explained == pytest.approx(1 - left.var() / np.var(returns))


def test_nothing_is_fitted_where_all_is_alike() -> None:
    steps = (np.array([0.2, 0.6]), np.array([0.4]))
    assert fit_returns(ScoredTask("reach 0", steps, np.array([False, False])), 0.99) is None
    flat = (np.array([0.5, 0.5]), np.array([0.5]))
    assert fit_returns(ScoredTask("reach 0", flat, np.array([True, False])), 0.99) is None
