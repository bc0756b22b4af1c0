"""The experts in real scenes."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.sim


def episode(suite: str, index: int, repeat: int, seed: int, noise: float = 0.0) -> tuple[bool, int]:
    """Success and control steps of an episode from a drawn placement."""
    from services.env.demonstrations.episodes import Play, play, start
    from services.env.demonstrations.stage import Stages

    stages = Stages({}, "fast")
    stage = stages.of(suite, index)
    how = Play(repeat, noise)
    start(stage.scene, stage.task, how.settle_steps, placement_seed=seed)
    rng = np.random.default_rng(seed)
    played = play(stage.scene, stage.sight, stage.task.max_control_steps, how, rng)
    stages.close()
    assert played.states.shape[0] == len(played.actions) == len(played.expert_actions)
    return played.success, len(played.actions)


@pytest.mark.parametrize("suite", ["reach", "approach"])
def test_reaching_is_straight(suite: str) -> None:
    for repeat in (1, 4):
        success, steps = episode(suite, 0, repeat, seed=5)
        assert success
        assert steps < 30
    success, _ = episode(suite, 0, 4, seed=6, noise=0.25)
    assert success


@pytest.mark.slow
def test_a_bowl_is_put_on_a_plate() -> None:
    success, steps = episode("libero_spatial", 0, 5, seed=5)
    assert success
    assert steps < 220
