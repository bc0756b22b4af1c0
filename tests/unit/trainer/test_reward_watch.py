"""The watch over dense rewards: what it measures, by hand, and when it speaks."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("torch")

from services.trainer.reward_watch import (
    RewardHackedError,
    RewardWatch,
    correlation,
)
from vlarl.config import RewardConfig
from vlarl.rollout.v1 import rollout_pb2

pytestmark = pytest.mark.torch


def episode(dense: list[float], success: bool) -> rollout_pb2.Trajectory:
    """Dense rewards count by a tenth."""
    sparse = [0.0] * (len(dense) - 1) + [float(success)]
    return rollout_pb2.Trajectory(
        steps=[rollout_pb2.Step()] * len(dense),
        outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
        scores=rollout_pb2.RewardScores(
            sparse=sparse,
            dense=dense,
            total=[s + 0.1 * d for s, d in zip(sparse, dense, strict=True)],
        ),
    )


def honest(count: int) -> list[rollout_pb2.Trajectory]:
    return [episode([0.5 + 0.4 * (n % 2)] * 4, n % 2 == 1) for n in range(count)]


def farmed(count: int) -> list[rollout_pb2.Trajectory]:
    """Loitering pays: failures are long and sum to more."""
    return [episode([0.6] * (4 if n % 2 else 40), n % 2 == 1) for n in range(count)]


def test_an_iterations_metrics_by_hand() -> None:
    episodes = [episode([0.5, 1.0], True), episode([0.2, 0.0, 0.2], False)]
    found = RewardWatch(RewardConfig()).record(episodes)
    assert found["dense_return"] == pytest.approx((1.5 + 0.4) / 2)
    assert found["dense_return_success"] == pytest.approx(1.5)
    assert found["dense_return_failure"] == pytest.approx(0.4)
    assert found["dense_share"] == pytest.approx(0.19 / 1.19)
    assert found["dense_success_correlation"] == pytest.approx(1.0)
    assert found["dense_length_correlation"] == pytest.approx(-1.0)


def test_outcomes_alone_are_not_watched() -> None:
    bare = episode([0.0], True)
    del bare.scores.dense[:]
    assert RewardWatch(RewardConfig()).record([bare]) == {}


def test_where_nothing_varies_nothing_correlates() -> None:
    assert correlation(np.array([1.0, 2.0]), np.array([1.0, 1.0])) is None
    found = RewardWatch(RewardConfig()).record([episode([0.5], True), episode([0.5], True)])
    assert set(found) == {"dense_return", "dense_share", "dense_return_success"}


def test_it_warns_and_stops_where_return_and_success_part(caplog: pytest.LogCaptureFixture) -> None:
    watch = RewardWatch(RewardConfig(watch_episodes=40, stop_below=-0.8))
    with caplog.at_level(logging.WARNING):
        assert watch.record(honest(40))["dense_success_correlation"] > 0.9
        assert not caplog.records
        # Half of the window is farmed by now.
        mixed = watch.record(farmed(20))["dense_success_correlation"]
        assert -0.8 < mixed < 0.1
        assert "reward hacking? the reward model's sum" in caplog.text
    with pytest.raises(RewardHackedError, match=r"less than reward\.stop_below, -0\.8"):
        watch.record(farmed(20))


def test_a_few_episodes_say_too_little(caplog: pytest.LogCaptureFixture) -> None:
    watch = RewardWatch(RewardConfig(stop_below=0.9))
    assert watch.record(farmed(20))["dense_success_correlation"] < 0
    assert not caplog.records
