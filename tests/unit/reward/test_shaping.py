"""The potential form leaves the best policy what it is, whatever a time limit means.

A chain small enough to try everything, and none of our code but the rewards themselves and the
trainer's advantages.

    0 - 1 - 2 - 3 - 4 - goal      left, stay, right; 1 for entering the goal, which ends the episode
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from vlarl_reward.models.process import dense_rewards
from vlarl_trainer.algorithms.ppo import batch_advantages
from vlarl_trainer.batch import Batch, Episode

pytestmark = pytest.mark.torch

GOAL = 5
MOVES = (-1, 0, 1)
GAMMA = 0.9
LIMIT = 3
COEFFICIENT = 2.0
TRAPS = [
    np.array([0.1, 0.9, 0.2, 0.8, 0.95, 0.7]),
    np.array([0.9, 0.1, 0.1, 0.9, 0.1, 0.9]),
    np.linspace(1.0, 0.0, 6),
]
"""Potentials of the states, the goal's own among them, that lead astray if they can."""
Limit = Literal["bootstrap", "terminal"]


def walk(start: int, moves: tuple[int, ...]) -> list[int]:
    """The states of an episode, until the goal or the last move."""
    states = [start]
    for move in moves:
        if states[-1] == GOAL:
            break
        states.append(min(max(states[-1] + move, 0), GOAL))
    return states


def rewards(states: list[int], potential: np.ndarray | None, limit: Limit) -> np.ndarray:
    """Of an episode, as the reward server gives them."""
    sparse = np.array([float(after == GOAL) for after in states[1:]])
    if potential is None:
        return sparse
    goes_on = states[-1] != GOAL and limit == "bootstrap"
    potentials = potential[states].copy()
    potentials[-1] *= goes_on
    return sparse + COEFFICIENT * dense_rewards(potentials, "potential", GAMMA)


def values(
    potential: np.ndarray | None, limit: Limit, rewarded: Limit | None = None
) -> tuple[np.ndarray, list[dict[int, float]]]:
    """The best value of each state, and what each first move is worth, over all episodes of LIMIT
    moves. bootstrap: the value of the state that an episode was cut at follows, to the fixed point.
    rewarded: what a limit means to the rewards, where that is something else.
    """
    discounts = GAMMA ** np.arange(LIMIT + 1)
    value = np.zeros(GOAL + 1)
    for _ in range(400 if limit == "bootstrap" else 1):
        worth: list[dict[int, float]] = []
        for start in range(GOAL):
            best: dict[int, float] = {}
            for moves in itertools.product(MOVES, repeat=LIMIT):
                states = walk(start, moves)
                given = rewards(states, potential, rewarded or limit)
                total = float(discounts[: len(given)] @ given)
                if states[-1] != GOAL and limit == "bootstrap":
                    total += discounts[len(given)] * value[states[-1]]
                best[moves[0]] = max(best.get(moves[0], -np.inf), total)
            worth.append(best)
        before, value = value, np.array([*(max(best.values()) for best in worth), 0.0])
        if np.abs(value - before).max() < 1e-12:
            break
    return value, worth


def best_moves(worth: list[dict[int, float]]) -> list[set[int]]:
    return [
        {move for move, value in best.items() if value > max(best.values()) - 1e-9}
        for best in worth
    ]


@pytest.mark.parametrize("potential", TRAPS)
@pytest.mark.parametrize("limit", ["bootstrap", "terminal"])
def test_the_best_moves_are_those_of_the_sparse_reward(potential: np.ndarray, limit: Limit) -> None:
    plain, plain_worth = values(None, limit)
    shaped, shaped_worth = values(potential, limit)
    assert best_moves(shaped_worth) == best_moves(plain_worth)
    # And more than that: values differ by the potential alone (Ng, Harada and Russell, 1999).
    np.testing.assert_allclose(shaped[:GOAL], (plain - COEFFICIENT * potential)[:GOAL], atol=1e-9)
    if limit == "bootstrap":
        assert best_moves(plain_worth) == [{1}] * GOAL


def test_a_potential_of_nothing_at_a_limit_that_is_no_end_misleads() -> None:
    """So the test above can fail: rewards that take a cut for an end keep away from good states."""
    _, worth = values(TRAPS[0], "bootstrap", rewarded="terminal")
    assert best_moves(worth) != [{1}] * GOAL


def test_two_equally_worthless_ends_have_equal_advantages() -> None:
    """Cut beside the goal and far from it, by a policy that never gets there: V is 0 everywhere,
    and the critic of the shaped rewards knows -c * Phi. Both advantages are 0.
    """
    ends = [np.array([0.5, 0.6, 1.0]), np.array([0.5, 0.3, 0.0])]
    shaped = [COEFFICIENT * dense_rewards(phi, "potential", 0.99) for phi in ends]
    batch = Batch(
        frames=[],
        instructions=[],
        proprio=[],
        token_ids=np.zeros((4, 7), np.int64),
        server_logprobs=np.zeros((4, 7), np.float32),
        executed=np.ones(4, np.int64),
        fresh=np.ones(4, bool),
        rewards=np.concatenate(shaped),
        episodes=[Episode(0, 2, False, 4), Episode(2, 4, False, 5)],
    )
    states = np.concatenate([ends[0][:2], ends[1][:2], ends[0][2:], ends[1][2:]])
    advantages, _ = batch_advantages(batch, -COEFFICIENT * states, 0.99, 0.95)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-12)
