"""Episodes of a group begin alike to the bit, whichever process runs them, whatever ran before."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import numpy as np
import pytest

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.rollout.v1 import rollout_pb2

pytestmark = [pytest.mark.sim, pytest.mark.slow]

PLACEMENT = 2**62 + 11
"""Seeds of placements have 63 bits."""


@dataclass(frozen=True)
class Seen:
    """An episode's beginning, and how it goes on under the same actions."""

    answers: list[bytes]
    """Frame, arm and all else that a client is told."""
    states: list[bytes]
    """Of the physics: time, positions, velocities."""


def play(suite: str, index: int, seeds: list[int]) -> list[Seen]:
    """One episode after another in one simulator."""
    from vlarl_env.simulators.episode import Simulator
    from vlarl_env.simulators.registry import TaskCatalog

    config = EnvConfig(profile="fast", render_size=128, action_repeat=4)
    simulator = Simulator(TaskCatalog().find(suite, index), config)
    episodes = []
    for number, seed in enumerate(seeds):
        task = rollout_pb2.Task(suite=suite, index=index)
        answers = [simulator.reset(env_pb2.ResetEpisode(task=task, placement_seed=seed))]
        states = [simulator._scene.state().tobytes()]
        # Of another placement, other actions: what an episode leaves behind differs, too.
        luck = np.random.default_rng(0 if seed == PLACEMENT else number + 1)
        for _ in range(3):
            action = luck.uniform(-1, 1, 7)
            action[6] = 1.0
            answers.append(simulator.step(env_pb2.StepEpisode(action=action)))
            states.append(simulator._scene.state().tobytes())
        found = [answer.SerializeToString(deterministic=True) for answer in answers]
        episodes.append(Seen(found, states))
    simulator.close()
    return episodes


@pytest.mark.parametrize(("suite", "index"), [("reach", 0), ("libero_object", 3)])
def test_members_of_a_group_begin_alike_in_any_process(suite: str, index: int) -> None:
    """In a fresh process; in another after other episodes; and again after one of its own group."""
    context = multiprocessing.get_context("spawn")
    orders = [[PLACEMENT], [5, 6, PLACEMENT, PLACEMENT]]
    with context.Pool(2, maxtasksperchild=1) as processes:
        # One for each process, as each ends after one.
        asked = [(suite, index, seeds) for seeds in orders]
        (fresh,), (first_other, _, after_others, again) = processes.starmap(play, asked, 1)
    assert fresh.states[0] == after_others.states[0] == again.states[0] != first_other.states[0]
    assert fresh.answers[0] == after_others.answers[0] == again.answers[0]
    assert first_other.answers[0] != fresh.answers[0]
    assert fresh == after_others == again
