"""Official initial states against the loop of the benchmark's evaluators: seeded once a task."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from tests.integration.env.stock import Stock, stock_environment

if TYPE_CHECKING:
    from vlarl_env.simulators.libero.scene import Profile, Scene

pytestmark = pytest.mark.sim

SIZE = 64
STATES = 4
OUT_OF_ORDER = (2, 0, 3, 1)
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
REACH = np.array([0.5, 0.2, -0.5, 0.1, 0.0, 0.0, 1.0])
ACTIONS = [NO_OP] * 10 + [REACH] * 2


@dataclass(frozen=True)
class Seen:
    """An episode's beginning."""

    body_pos: npt.NDArray[np.float64]
    body_quat: npt.NDArray[np.float64]
    states: list[npt.NDArray[np.float64]]
    frame: npt.NDArray[np.uint8]


def stock_loop(suite: str, index: int) -> list[Seen]:
    """OpenVLA's run_libero_eval, as far as the simulator goes: states 0 to 3 of a task, in turn."""
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find(suite, index)  # It also tells LIBERO where its files are.
    np.random.seed(7)  # What construction draws doesn't matter.
    seen = []
    with stock_environment(task.bddl_file, use_camera_obs=False) as env:
        env.seed(0)
        for number in range(STATES):
            # Its reset frees graphics of whichever context is current.
            env.sim._render_context_offscreen.gl_ctx.make_current()
            env.reset()
            env.set_init_state(task.init_state(number))
            frame = env.sim.render(SIZE, SIZE, camera_name="agentview")[::-1, ::-1]
            states = [env.get_sim_state()]
            for action in ACTIONS:
                env.step(action)
                states.append(env.get_sim_state())
            model = env.sim.model
            seen.append(Seen(np.array(model.body_pos), np.array(model.body_quat), states, frame))
    return seen


@pytest.fixture(scope="module")
def evaluator() -> Iterator[ProcessPoolExecutor]:
    """A process that nothing else runs in: LIBERO as it comes, and no graphics but its own.

    Its graphics are freed in whichever context is current, and the process may abort.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


def ours(scene: Scene, state: npt.NDArray[np.float64], number: int) -> Seen:
    scene.draw_official(number)
    scene.set_state(state)
    frame = scene.render("agentview", SIZE)
    states = [scene.state()]
    for action in ACTIONS:
        scene.control_step(action)
        states.append(scene.state())
    model = scene.problem.sim.model
    return Seen(np.array(model.body_pos), np.array(model.body_quat), states, frame)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "index"),
    [
        ("libero_spatial", 4),  # A drawer is open: LIBERO draws that once more at each reset.
        ("libero_object", 3),
        ("libero_goal", 0),
        ("libero_10", 2),
    ],
)
def test_states_are_those_of_the_evaluators_loop_in_any_order(
    evaluator: ProcessPoolExecutor, suite: str, index: int
) -> None:
    """Fixtures, states and frames of states 0 to 3, asked for out of order: equal bit for bit."""
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find(suite, index)
    expected = evaluator.submit(stock_loop, suite, index).result()
    scene = Scene(task.bddl_file, "faithful")
    scene.draw_placement(11)
    for number in OUT_OF_ORDER:
        got = ours(scene, task.init_state(number), number)
        np.testing.assert_array_equal(got.body_pos, expected[number].body_pos)
        np.testing.assert_array_equal(got.body_quat, expected[number].body_quat)
        np.testing.assert_array_equal(got.states, expected[number].states)
        np.testing.assert_array_equal(got.frame, expected[number].frame)
        assert got.frame.std() > 10, "a blank frame proves nothing"
    moved = max(np.abs(seen.body_pos - expected[0].body_pos).max() for seen in expected)
    assert moved > 0.005 or suite == "libero_object", "fixtures that stand still prove nothing"
    scene.close()


@pytest.mark.slow
def test_fixtures_are_a_function_of_the_state_alone() -> None:
    """Not of the profile, the states before, seeded placements between, or tries that failed."""
    from vlarl_env.simulators.libero.scene import RandomizationError, Scene
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find("libero_spatial", 4)

    def fixtures(scene: Scene, number: int) -> npt.NDArray[np.float64]:
        scene.draw_official(number)
        model = scene.problem.sim.model
        return np.concatenate([model.body_pos, model.body_quat], axis=1)

    poses: dict[Profile, npt.NDArray[np.float64]] = {}
    profiles: tuple[Profile, ...] = ("faithful", "fast")
    for profile in profiles:
        scene = Scene(task.bddl_file, profile)
        last = fixtures(scene, 49)
        scene.draw_placement(3)
        first = fixtures(scene, 0)
        np.testing.assert_array_equal(fixtures(scene, 49), last)
        assert not np.array_equal(first, last)
        poses[profile] = last
        scene.close()
    np.testing.assert_array_equal(poses["faithful"], poses["fast"])

    failures = 0

    def sample(*arguments: Stock) -> Stock:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise RandomizationError("no room, once")
        return original(*arguments)

    scene = Scene(task.bddl_file, "fast")
    sampler = scene.problem.placement_initializer
    original = sampler.sample
    sampler.sample = sample
    fixtures(scene, 0)
    # Construction, the try that failed, the one that didn't: each loaded the open drawer once more.
    assert len(scene.problem.object_property_initializers) == 3
    scene.close()
