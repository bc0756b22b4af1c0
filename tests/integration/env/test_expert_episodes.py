"""The experts in real scenes."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.sim

OPEN_THE_MICROWAVE = 35


def episode(
    suite: str, index: int, repeat: int, seed: int, noise: float = 0.0, pace: float = 1.0
) -> tuple[bool, int]:
    """Success and control steps of an episode from a drawn placement."""
    from vlarl_jobs.demonstrations.episodes import Play, play, start
    from vlarl_jobs.demonstrations.scene_cache import SceneCache

    stages = SceneCache({}, "fast")
    stage = stages.of(suite, index)
    how = Play(repeat, noise, pace)
    start(stage.scene, stage.task, how.settle_steps, placement_seed=seed)
    rng = np.random.default_rng(seed)
    played = play(stage.scene, stage.sight, stage.task.max_control_steps, how, rng)
    stages.close()
    assert played.states.shape[0] == len(played.actions) == len(played.expert_actions)
    assert np.abs(played.expert_actions[:, :3]).max() <= pace + 1e-6
    return played.success, len(played.actions)


@pytest.mark.parametrize("suite", ["reach", "approach"])
def test_reaching_is_straight(suite: str) -> None:
    for repeat in (1, 4):
        success, steps = episode(suite, 0, repeat, seed=5)
        assert success
        assert steps < 30
    success, _ = episode(suite, 0, 4, seed=6, noise=0.25)
    assert success


def test_a_slow_expert_takes_longer() -> None:
    _, quick = episode("reach", 0, 4, seed=5)
    success, steps = episode("reach", 0, 4, seed=5, pace=0.5)
    assert success
    assert steps > 1.6 * quick


@pytest.mark.slow
def test_a_bowl_is_put_on_a_plate() -> None:
    success, steps = episode("libero_spatial", 0, 5, seed=5)
    assert success
    assert steps < 220


def test_a_drawer_is_opened_by_its_handle() -> None:
    success, steps = episode("libero_goal", 0, 1, seed=5)
    assert success
    assert steps < 100


def test_a_drawer_is_opened_before_something_goes_into_it() -> None:
    success, steps = episode("libero_goal", 3, 1, seed=6)
    assert success
    assert steps < 220


def test_a_microwave_is_refused() -> None:
    from vlarl_jobs.demonstrations.experts.expert import Expert
    from vlarl_jobs.demonstrations.experts.goals import NoExpertError
    from vlarl_jobs.demonstrations.scene_cache import SceneCache

    stages = SceneCache({}, "fast")
    sight = stages.of("libero_90", OPEN_THE_MICROWAVE).sight
    with pytest.raises(NoExpertError, match="can open microwave_1: they open drawers alone"):
        Expert(sight, 1)
    stages.close()
