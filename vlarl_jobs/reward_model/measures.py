"""What a reward model is measured by: pure functions over scores and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def auc(scores: Floats, labels: Bools) -> float:
    """Area under the ROC curve: how often a positive has the higher score than a negative, a tie
    counting half (Mann and Whitney's U). NaN without samples of both kinds.

    Args:
        scores: [N].
        labels: [N].
    """
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    order = np.sort(scores)
    # The mean rank of equal scores.
    ranks = (np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")) / 2
    wins = ranks[labels].sum() - positive * positive / 2
    return float(wins / (positive * negative))


@dataclass(frozen=True)
class Reliability:
    """Probabilities against what came true, in bins of equal width; empty bins are left out."""

    predicted: Floats
    """[B], mean probability of a bin's samples."""
    observed: Floats
    """[B], share of them that are positive."""
    count: NDArray[np.int64]
    """[B]."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by samples."""
        gaps = np.abs(self.predicted - self.observed)
        return float((gaps * self.count).sum() / self.count.sum())


def reliability(probabilities: Floats, labels: Bools, bins: int = 10) -> Reliability:
    """How far probabilities [N] can be taken at their word, labels [N]."""
    places = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    count = np.bincount(places, minlength=bins)
    filled = count > 0
    predicted = np.bincount(places, probabilities, bins)[filled] / count[filled]
    observed = np.bincount(places, labels.astype(np.float64), bins)[filled] / count[filled]
    return Reliability(predicted, observed, count[filled])
