"""How far the simulated hand turns for a rotation: what recordings are judged by."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("libero")

from vlarl_env.simulators.libero.scene import NO_OP, Scene
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_jobs.demonstrations.arm import hand_rotations
from vlarl_jobs.demonstrations.motion import LEAST_TURNED, MOST_TURNED, turn_fit

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.mark.parametrize(
    ("held", "rest", "size", "least", "most"),
    [
        (16, 0, 0.2, 0.9, 1.2),
        (16, 0, 1.0, LEAST_TURNED, 1.0),
        (4, 12, 0.4, 0.9, 1.2),
        (1, 8, 1.0, 1.2, MOST_TURNED),
    ],
)
def test_the_hand_turns_as_far_as_recordings_are_judged_by(
    held: int, rest: int, size: float, least: float, most: float
) -> None:
    task = TaskCatalog().find("libero_spatial", 0)
    scene = Scene(task.bddl_file, "fast")
    scene.draw_official(0)
    scene.set_state(task.init_state(0))
    for _ in range(10):
        scene.control_step(NO_OP)
    rng, states = np.random.default_rng(0), []
    actions = np.zeros((96, 7))
    actions[:, 6] = -1
    for start in range(0, len(actions), held + rest):
        actions[start : start + held, 3:6] = size * rng.uniform(-1, 1, 3)
    for start in range(0, len(actions), 16):
        actions[start : start + 16, :3] = 0.5 * rng.uniform(-1, 1, 3)
    for action in actions:
        states.append(scene.state())
        scene.control_step(action)
    scene.close()
    fit = turn_fit(actions, hand_rotations(np.stack(states)))
    assert fit is not None
    assert fit.fits
    assert least < fit.measure < most
    too_large = turn_fit(actions * 20, hand_rotations(np.stack(states)))
    assert too_large is not None
    assert not too_large.fits
