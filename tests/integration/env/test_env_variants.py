"""LIBERO-PRO's variants of the suites: one task of each kind is built, reset and stepped."""

from __future__ import annotations

import numpy as np
import pytest

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.rollout.v1 import rollout_pb2

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.mark.parametrize(
    "suite", ["libero_spatial_swap", "libero_object_object", "libero_goal_lan", "libero_10_task"]
)
def test_a_variant_is_built_and_steps(suite: str) -> None:
    from vlarl_env.simulators.episode import Simulator
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find(suite, 0)
    simulator = Simulator(task, EnvConfig(profile="fast", render_size=64, settle_steps=10))
    frames = []
    for init_state in (0, 1):
        command = env_pb2.ResetEpisode(
            task=rollout_pb2.Task(suite=suite, index=0), init_state=init_state
        )
        seen = simulator.reset(command)
        assert not seen.terminated
        assert not seen.truncated
        assert seen.instruction == task.instruction
        frames.append(seen.frames[0].image)
    assert frames[0] != frames[1], "two official states look the same"
    for _ in range(3):
        seen = simulator.step(env_pb2.StepEpisode(action=[0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 1.0]))
    assert seen.control_steps == 3
    assert np.isfinite(seen.robot_state.position).all()
    simulator.close()


def test_swapped_objects_stand_elsewhere() -> None:
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    where = {}
    for suite in ("libero_spatial", "libero_spatial_swap"):
        task = TaskCatalog().find(suite, 0)
        scene = Scene(task.bddl_file, "fast")
        scene.draw_placement(0)
        scene.set_state(task.init_state(0))
        where[suite] = {
            name: np.array(scene._env.sim.data.get_body_xpos(f"{name}_main"))
            for name in ("akita_black_bowl_1", "plate_1")
        }
        scene.close()
    moved = [
        np.linalg.norm(where["libero_spatial"][name] - where["libero_spatial_swap"][name])
        for name in where["libero_spatial"]
    ]
    assert max(moved) > 0.03, "metres"
