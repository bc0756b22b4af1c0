"""The watch over dense rewards: what it measures, by hand, and when it speaks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vlarl.config import OutcomeRewardConfig, ProcessRewardConfig, RunConfig
from vlarl.errors import FatalError
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.main import run
from vlarl_trainer.rollouts.reward_hacking import (
    RewardHackedError,
    RewardWatch,
    correlation,
    hovering_pays,
)

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


def watch_of(**reward: object) -> RewardWatch:
    values = {"model": "rprm", "checkpoint": "rewards/reach"} | reward
    return RewardWatch(ProcessRewardConfig.model_validate(values))


def test_an_iterations_metrics_by_hand() -> None:
    episodes = [episode([0.5, 1.0], True), episode([0.2, 0.0, 0.2], False)]
    found = watch_of().record(episodes)
    assert found["dense_return"] == pytest.approx((1.5 + 0.4) / 2)
    assert found["dense_return_success"] == pytest.approx(1.5)
    assert found["dense_return_failure"] == pytest.approx(0.4)
    assert found["dense_share"] == pytest.approx(0.19 / 1.19)
    assert found["dense_success_correlation"] == pytest.approx(1.0)
    assert found["dense_length_correlation"] == pytest.approx(-1.0)


def test_outcomes_alone_are_not_watched() -> None:
    bare = episode([0.0], True)
    del bare.scores.dense[:]
    assert watch_of().record([bare]) == {}


def test_dense_rewards_of_another_model_are_measured_and_not_correlated() -> None:
    found = RewardWatch(OutcomeRewardConfig()).record(farmed(60))
    assert set(found) == {
        *("dense_return", "dense_share", "dense_return_success", "dense_return_failure")
    }


def test_where_nothing_varies_nothing_correlates() -> None:
    assert correlation(np.array([1.0, 2.0]), np.array([1.0, 1.0])) is None
    found = watch_of().record([episode([0.5], True), episode([0.5], True)])
    assert set(found) == {"dense_return", "dense_share", "dense_return_success"}


def test_it_warns_and_stops_where_return_and_success_part(caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_of(watch_episodes=40, stop_below=-0.8)
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
    watch = watch_of(stop_below=0.9)
    assert watch.record(farmed(20))["dense_success_correlation"] < 0
    assert not caplog.records


def test_sums_that_telescope_say_nothing_of_farming(caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_of(form="potential")
    found = watch.record(farmed(60))
    assert "dense_return" in found
    assert not {name for name in found if name.endswith("correlation")}
    assert not caplog.records


def run_with(
    coefficient: float, time_limit: str = "bootstrap", gamma: float = 0.99, **reward: object
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "reward": {"model": "rprm", "checkpoint": "rewards/reach", "coefficient": coefficient}
            | reward,
            "trainer": {"ppo": {"time_limit": time_limit, "gamma": gamma}},
        }
    )


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (run_with(0.0101), "lower it to 0.01 or less"),  # 1 / (1 - 0.99) = 100
        (run_with(0.0099), None),
        (run_with(0.0101, success_reward=2.0), None),
        (run_with(0.021, success_reward=2.0), "lower it to 0.02 or less"),
        (run_with(1e-9, gamma=1.0), "set reward.form"),  # what lasts for ever is worth anything
        (run_with(0.0, gamma=1.0), None),
        (run_with(5.0, form="potential"), None),
        (run_with(5.0, model="outcome"), None),
    ],
)
def test_it_warns_where_hovering_for_ever_is_worth_more_than_success(
    config: RunConfig, bound: str | None
) -> None:
    found = hovering_pays(config)
    assert (found is None) == (bound is None)
    if bound is not None:
        assert bound in str(found)


def limited(coefficient: float, gamma: float, **changes: object) -> RunConfig:
    config = run_with(coefficient, "terminal", gamma)
    return config.model_validate(config.model_dump() | changes)


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        # 1 + 0.5 + 0.25 = 1.75, and 1 / 1.75 = 0.571.
        (limited(0.58, 0.5, tasks={"max_actions": 3}), True),
        (limited(0.57, 0.5, tasks={"max_actions": 3}), False),
        # LIBERO's own limit: 220 control steps, five an action, and 1 / 44 = 0.02273.
        (limited(0.0228, 1.0, env={"action_repeat": 5}), True),
        (limited(0.0227, 1.0, env={"action_repeat": 5}), False),
        # The suite's own limit, which nobody here knows.
        (limited(5.0, 1.0, tasks={"suite": "reach"}), False),
    ],
)
def test_where_the_limit_is_an_end_the_actions_until_then_count(
    config: RunConfig, warns: bool
) -> None:
    assert (hovering_pays(config) is not None) == warns


def test_the_trainer_says_it_before_anything_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_with(0.1)
    absent = config.policy.model_copy(update={"checkpoint": tmp_path / "none"})
    with caplog.at_level(logging.WARNING), pytest.raises(FatalError, match="none"):
        run(config.model_copy(update={"policy": absent}), tmp_path)
    assert "reward.coefficient, 0.1, makes hovering worth more than success" in caplog.text
