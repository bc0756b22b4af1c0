"""Advantages within a group against numbers computed from the definitions as plain sums."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vlarl.config import TrainerConfig
from vlarl_trainer.algorithms.base import Algorithm, Setup, discounted_sums
from vlarl_trainer.algorithms.grpo import grpo_advantages
from vlarl_trainer.algorithms.registry import build_algorithm
from vlarl_trainer.algorithms.rloo import rloo_advantages
from vlarl_trainer.batch import Batch, Episode

pytestmark = pytest.mark.torch
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "groups.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["groups"])
def test_advantages_equal_the_definitions(case: dict) -> None:
    returns = np.array(case["returns"])[:, None]
    assert grpo_advantages(returns)[1][:, 0] == pytest.approx(case["grpo"], abs=1e-9)
    raw, undivided = grpo_advantages(returns, divide=False)
    assert raw[:, 0] == pytest.approx(case["dr_grpo"], abs=1e-12)
    assert undivided[:, 0] == pytest.approx(case["dr_grpo"], abs=1e-12)
    assert rloo_advantages(returns)[:, 0] == pytest.approx(case["rloo"], abs=1e-12)


def test_what_hardly_differs_isnt_blown_up() -> None:
    returns = np.array([[0.0], [0.002]])
    assert grpo_advantages(returns, floor=0.02)[1][:, 0] == pytest.approx([-0.05, 0.05])
    assert grpo_advantages(returns)[1][:, 0] == pytest.approx([-1, 1], abs=2e-3)


def test_returns_to_go_are_discounted_sums() -> None:
    rewards = np.array([1.0, 0.0, 2.0])
    assert discounted_sums(rewards, 0.5).tolist() == [1 + 0 + 0.25 * 2, 0.5 * 2, 2]


def algorithm(name: str, **keys: object) -> Algorithm:
    config = TrainerConfig.model_validate(
        {"algorithm": name, "episodes_per_iteration": 4, name: {"group_size": 2} | keys}
    )
    return build_algorithm(Setup(config, None, None, 7, 1.0))  # type: ignore[arg-type]


def batch(*episodes: tuple[str, list[float]]) -> Batch:
    """Episodes by their groups and rewards, of which nothing else counts."""
    found, start = [], 0
    for group, rewards in episodes:
        found.append(Episode(start, start + len(rewards), False, None, group))
        start += len(rewards)
    return Batch(
        frames=[b""] * start,
        instructions=[""] * start,
        proprio=[],
        token_ids=np.zeros((start, 7), np.int64),
        server_logprobs=np.zeros((start, 7), np.float32),
        executed=np.ones(start, np.int64),
        fresh=np.ones(start, bool),
        rewards=np.array([reward for _, rewards in episodes for reward in rewards]),
        episodes=found,
    )


# Members of a group needn't lie beside each other.
TWO_GROUPS = batch(
    ("a", [0.0, 0.0, 1.0]), ("b", [0.5, 0.5]), ("a", [0.0]), ("b", [0.25, 0.0, 0.25])
)


def test_all_actions_of_an_episode_get_its_advantage() -> None:
    estimate = algorithm("rloo").estimate(TWO_GROUPS, None)
    expected = [1, 1, 1, 0.5, 0.5, -1, -0.5, -0.5, -0.5]
    assert estimate.advantages.tolist() == pytest.approx(expected)
    assert estimate.returns.tolist() == [1, 1, 1, 1, 0.5, 0, 0.5, 0.25, 0.25]


def test_an_action_may_get_what_came_after_it() -> None:
    """In "b" the second member goes on alone at its third step, where the first has nothing to go
    any more.
    """
    estimate = algorithm("rloo", credit="to_go").estimate(TWO_GROUPS, None)
    expected = [1, 1, 1, 0.5, 0.25, -1, -0.5, -0.25, 0.25]
    assert estimate.advantages.tolist() == pytest.approx(expected)


def test_grpo_divides_by_the_deviation_of_episodes() -> None:
    """Of the returns 1 and 0 it is 0.5, of 1 and 0.5 it is 0.25."""
    estimate = algorithm("grpo", credit="to_go").estimate(TWO_GROUPS, None)
    raw = np.array([0.5, 0.5, 0.5, 0.25, 0.125, -0.5, -0.25, -0.125, 0.125])
    scale = np.array([0.5, 0.5, 0.5, 0.25, 0.25, 0.5, 0.25, 0.25, 0.25])
    assert estimate.raw.tolist() == pytest.approx(raw.tolist())
    assert estimate.advantages.tolist() == pytest.approx((raw / scale).tolist(), abs=1e-5)


def test_a_discount_makes_an_early_success_worth_more() -> None:
    early, late = ("a", [1.0]), ("a", [0.0, 1.0])
    estimate = algorithm("rloo", gamma=0.5).estimate(batch(early, late), None)
    assert estimate.advantages.tolist() == [0.5, -0.5, -0.5]


def test_losses_are_averaged_over_episodes_or_over_actions() -> None:
    losses = np.arange(9.0)
    by_episode = [losses[:3], losses[3:5], losses[5:6], losses[6:]]
    shares = algorithm("grpo").shares(TWO_GROUPS)
    assert (shares * losses).mean() == pytest.approx(np.mean([one.mean() for one in by_episode]))
    assert shares.mean() == pytest.approx(1)
    assert algorithm("grpo", average="actions").shares(TWO_GROUPS).tolist() == [1] * 9


def test_an_answer_weighs_what_was_executed_of_it() -> None:
    """Episodes of 3 + 1, 2, 4 + 4 and 1 actions in chunks of four."""
    chunks = batch(("a", [0.0, 1.0]), ("a", [0.0]), ("b", [0.0, 1.0]), ("b", [0.0]))
    chunks = replace(chunks, executed=np.array([3, 1, 2, 4, 4, 1]))
    expected = np.array([3 / 4, 1 / 4, 1, 1 / 2, 1 / 2, 1]) * 6 / 4
    assert algorithm("grpo").shares(chunks) == pytest.approx(expected)
    expected = np.array([3, 1, 2, 4, 4, 1]) * 6 / 15
    assert algorithm("grpo", average="actions").shares(chunks) == pytest.approx(expected)


def test_an_episode_alone_is_not_compared() -> None:
    with pytest.raises(ValueError, match="'a' has one episode"):
        algorithm("grpo").estimate(batch(("a", [1.0])), None)
