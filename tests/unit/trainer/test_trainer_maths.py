"""Advantages and curriculum against numbers computed from the definitions as plain sums."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlarl.config import PpoConfig
from vlarl_trainer.algorithms.ppo import generalised_advantages, whiten
from vlarl_trainer.rollouts.curriculum import draw_tasks, task_probabilities

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "rl.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["gae"])
def test_advantages_equal_the_definition(case: dict) -> None:
    advantages, returns = generalised_advantages(
        case["rewards"],
        case["values"],
        case["bootstrap_value"],
        terminal=case["terminated"],
        gamma=case["gamma"],
        gae_lambda=case["lam"],
    )
    np.testing.assert_allclose(advantages, case["advantages"], atol=1e-12)
    np.testing.assert_allclose(returns, case["returns"], atol=1e-12)


def test_a_time_limit_bootstraps_and_success_does_not() -> None:
    rewards, values = [0.0, 0.0], [0.0, 0.0]
    common = {"gamma": 1.0, "gae_lambda": 1.0}
    truncated, _ = generalised_advantages(rewards, values, 0.7, terminal=False, **common)
    terminal, _ = generalised_advantages(rewards, values, 0.7, terminal=True, **common)
    assert truncated.tolist() == [0.7, 0.7]
    assert terminal.tolist() == [0.0, 0.0]


def test_mismatched_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        generalised_advantages([1.0], [0.0, 0.0], 0.0, terminal=True, gamma=1, gae_lambda=1)


def test_whitened_advantages_have_mean_zero_and_deviation_one() -> None:
    white = whiten(np.array([1.0, 2.0, 4.0, 9.0]))
    assert abs(white.mean()) < 1e-12
    assert abs(white.std() - 1.0) < 1e-6


def test_noise_below_the_floor_is_not_blown_up_to_a_signal() -> None:
    """A batch in which all failed, and one with a success, by hand."""
    noise = 0.003 * np.array([1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose(whiten(noise, floor=0.02), noise / 0.02)
    solved = np.array([0.0, 0.0, 0.0, 1.0])
    assert np.array_equal(whiten(solved, floor=0.02), whiten(solved)), (
        "healthy ones stay, to the bit"
    )


@pytest.mark.parametrize(
    ("actions", "above"), [(20_000, True), (25_000, False)], ids=["above", "below"]
)
def test_one_success_in_a_large_batch_is_above_the_default_floor(actions: int, above: bool) -> None:
    """The advantages of a success under a critic that knows nothing, at the paper's lambda."""
    steps = 200
    rewards = np.zeros(steps)
    rewards[-1] = 1.0
    ppo = PpoConfig()
    advantages, _ = generalised_advantages(
        rewards, np.zeros(steps), 0.0, terminal=True, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda
    )
    everything = np.append(advantages, np.zeros(actions - steps))
    assert (everything.std() > ppo.whiten_floor) == above


@pytest.mark.parametrize("case", GOLDEN["curriculum"])
@pytest.mark.parametrize("kind", ["paper", "frontier"])
def test_curriculum_equals_the_formula(case: dict, kind: str) -> None:
    got = task_probabilities(case["success"], case["tau"], kind)
    np.testing.assert_allclose(got, case[kind], atol=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "paper", "frontier"])
def test_no_task_falls_below_the_floor(kind: str) -> None:
    got = task_probabilities([0.0, 0.5, 1.0], tau=0.01, kind=kind, floor=0.1)
    assert got.min() >= 0.1 - 1e-12
    assert got.sum() == pytest.approx(1.0)


def test_draws_are_as_even_as_the_probabilities_allow() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    for seed in range(20):
        drawn = draw_tasks(probabilities, 7, np.random.default_rng(seed))
        counts = np.bincount(drawn, minlength=3)
        assert counts.sum() == 7
        assert np.all(np.abs(counts - 7 * probabilities) < 1.0)
