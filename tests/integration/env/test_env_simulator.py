"""One simulator against LIBERO's own environment."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.integration.env.stock import Stock, stock_environment
from vlarl.config import EnvConfig
from vlarl.config.suites import scene_cameras
from vlarl.env.v1 import env_pb2
from vlarl.proprioception import proprioception
from vlarl.rollout.v1 import rollout_pb2

if TYPE_CHECKING:
    from vlarl_env.simulators.episode import Simulator
    from vlarl_env.simulators.libero.scene import Scene

pytestmark = pytest.mark.sim

SIZE = 128
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
CAMERAS = ("agentview", "robot0_eye_in_hand")
TOWARDS_THE_POINT = [1.0, 0.0, -0.7, 0.0, 0.0, 0.0, 1.0]


def random_actions(count: int) -> npt.NDArray[np.float64]:
    actions = np.clip(np.random.default_rng(1).normal(0, 0.4, (count, 7)), -1, 1)
    actions[:, 6] = np.where(np.arange(count) < count // 2, -1, 1)
    return actions


def stock_rollout(
    env: Stock, seed: int, state: npt.NDArray[np.float64] | None, actions: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    """LIBERO's own loop, as the published evaluations run it."""
    # Its reset frees graphics of whichever context is current.
    env.sim._render_context_offscreen.gl_ctx.make_current()
    env.seed(seed)
    env.reset()
    if state is not None:
        env.set_init_state(state)
    with blind(env):
        for _ in range(10):
            env.step(NO_OP)
    seen = []
    for action in actions:
        observation, _, done, _ = env.step(action)
        seen.append({**observation, "state": env.get_sim_state(), "done": done})
    return seen


@contextmanager
def blind(env: Stock) -> Iterator[None]:
    """Without frames, which evaluations throw away: they take most of the time."""
    images = [env.env._observables[f"{camera}_image"] for camera in CAMERAS]
    sensors = [image._sensor for image in images]
    for image, sensor in zip(images, sensors, strict=True):
        image._sensor = wraps(sensor)(lambda _: np.zeros((SIZE, SIZE, 3), np.uint8))
    yield
    for image, sensor in zip(images, sensors, strict=True):
        image._sensor = sensor


def stock_proprio(observation: dict[str, Any]) -> npt.NDArray[np.float64]:
    """The state that evaluations of OpenVLA-OFT hand to the policy, by robosuite's own function."""
    from robosuite.utils.transform_utils import quat2axisangle

    turned = quat2axisangle(observation["robot0_eef_quat"].copy())
    parts = (observation["robot0_eef_pos"], turned, observation["robot0_gripper_qpos"])
    return np.concatenate(parts)


def our_rollout(
    scene: Scene, seed: int, state: npt.NDArray[np.float64] | None, actions: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    scene.draw_placement(seed)
    if state is not None:
        scene.set_state(state)
    for _ in range(10):
        scene.control_step(NO_OP)
    seen = []
    for action in actions:
        scene.control_step(action)
        position, quaternion = scene.effector_pose()
        fingers = scene.finger_joints()
        seen.append(
            {
                **{f"{camera}_image": scene.render(camera, SIZE) for camera in CAMERAS},
                "state": scene.state(),
                "robot0_eef_pos": position.copy(),
                "robot0_eef_quat": quaternion,
                "robot0_gripper_qpos": fingers,
                "proprio": proprioception(position, quaternion, fingers),
                "done": scene.succeeded(),
            }
        )
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "index"), [("libero_spatial", 0), ("libero_spatial", 7), ("libero_goal", 7)]
)
def test_faithful_is_liberos_own_environment_bit_for_bit(suite: str, index: int) -> None:
    """States, frames of both cameras, poses: equal, also after other episodes in the same scene.

    In the second task things stand on fixtures, whose own places are drawn.
    """
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find(suite, index)
    scene = Scene(task.bddl_file, "faithful")
    actions = random_actions(6)
    our_rollout(scene, 5, None, actions)
    size = {"camera_heights": SIZE, "camera_widths": SIZE}
    with stock_environment(task.bddl_file, **size) as stock:
        for seed, state in [(0, task.init_state(3)), (11, None)]:
            theirs = stock_rollout(stock, seed, state, actions)
            ours = our_rollout(scene, seed, state, actions)
            for expected, got in zip(theirs, ours, strict=True):
                np.testing.assert_array_equal(got["state"], expected["state"])
                for camera in CAMERAS:
                    upright = expected[f"{camera}_image"][::-1, ::-1]
                    np.testing.assert_array_equal(got[f"{camera}_image"], upright)
                    assert upright.std() > 10, "a blank frame proves nothing"
                np.testing.assert_array_equal(got["robot0_eef_pos"], expected["robot0_eef_pos"])
                np.testing.assert_allclose(
                    got["robot0_eef_quat"], expected["robot0_eef_quat"], atol=1e-12
                )
                np.testing.assert_array_equal(
                    got["robot0_gripper_qpos"], expected["robot0_gripper_qpos"]
                )
                np.testing.assert_allclose(got["proprio"], stock_proprio(expected), atol=1e-12)
                assert got["done"] == expected["done"]
            stock_poses = stock.sim.model.body_pos
            np.testing.assert_array_equal(scene._env.sim.model.body_pos, stock_poses)
    scene.close()


@pytest.mark.slow
def test_fast_stays_close_to_faithful() -> None:
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find("libero_goal", 0)
    actions = random_actions(20)
    states, frames = {}, {}
    for profile in ("faithful", "fast"):
        scene = Scene(task.bddl_file, profile)
        rollout = our_rollout(scene, 0, task.init_state(1), actions)
        positions = 1 + scene._env.sim.model.nq
        states[profile] = np.stack([seen["state"][:positions] for seen in rollout])
        frames[profile] = np.stack([seen["agentview_image"] for seen in rollout]).astype(float)
        scene.close()
    assert 0 < np.abs(states["fast"] - states["faithful"]).max() < 5e-5
    error = ((frames["fast"] - frames["faithful"]) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 22


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    from vlarl_env.simulators.episode import Simulator
    from vlarl_env.simulators.registry import TaskCatalog

    config = EnvConfig(profile="fast", render_size=SIZE, crop=(30, 22, 84, 80), action_repeat=4)
    opened = Simulator(TaskCatalog().find("reach", 0), config)
    yield opened
    opened.close()


def reset_command(seed: int, *cameras: str, limit: int = 0) -> env_pb2.ResetEpisode:
    task = rollout_pb2.Task(suite="reach", index=0)
    return env_pb2.ResetEpisode(
        task=task, placement_seed=seed, cameras=cameras, max_control_steps=limit
    )


def step_command() -> env_pb2.StepEpisode:
    return env_pb2.StepEpisode(action=TOWARDS_THE_POINT)


def test_an_episode_ends_with_success(simulator: Simulator) -> None:
    seen = simulator.reset(reset_command(3))
    assert seen.control_steps == 0
    assert not seen.terminated
    steps = 0
    while not (seen.terminated or seen.truncated):
        seen = simulator.step(step_command())
        steps += 1
        assert seen.reward == float(seen.terminated)
    assert seen.terminated
    assert not seen.truncated
    assert 4 * (steps - 1) < seen.control_steps <= 4 * steps
    assert seen.instruction == "reach the point above the bowl"


CHUNK = [
    [0.6, -0.3, -0.7, 0.1, -0.1, 0.2, 1.0],
    [0.1, 0.8, -0.5, 0.0, 0.2, -0.3, 1.0],
    *([TOWARDS_THE_POINT] * 4),
    [-0.5, 0.2, 0.1, 0.0, 0.0, 0.4, 0.0],
    [0.3, 0.3, -0.2, 0.2, 0.0, 0.0, 0.0],
]


def chunk_command(actions: list[list[float]], repeat: int = 0) -> env_pb2.StepEpisode:
    numbers = [number for action in actions for number in action]
    return env_pb2.StepEpisode(action=numbers, horizon=len(actions), repeat=repeat)


def test_a_chunk_is_its_actions_one_by_one(simulator: Simulator) -> None:
    """To the bit: the state, the frames of both cameras, the arm."""
    simulator.reset(reset_command(3, *CAMERAS))
    for action in CHUNK:
        single = simulator.step(env_pb2.StepEpisode(action=action, repeat=1))
        assert single.executed == 1
    state = simulator._scene.state()
    assert simulator.reset(reset_command(3, *CAMERAS)).executed == 0
    whole = simulator.step(chunk_command(CHUNK, repeat=1))
    np.testing.assert_array_equal(simulator._scene.state(), state)
    assert (whole.executed, whole.control_steps) == (8, 8)
    assert [frame.camera for frame in whole.frames] == list(CAMERAS)
    single.executed = 8
    assert whole == single


def test_success_ends_a_chunk(simulator: Simulator) -> None:
    simulator.reset(reset_command(3))
    steps = 0
    while True:
        single = simulator.step(env_pb2.StepEpisode(action=TOWARDS_THE_POINT, repeat=1))
        steps += 1
        if single.terminated:
            break
    simulator.reset(reset_command(3))
    whole = simulator.step(chunk_command([TOWARDS_THE_POINT] * 100, repeat=2))
    assert (whole.terminated, whole.truncated, whole.reward) == (True, False, 1.0)
    assert whole.control_steps == steps
    assert whole.executed == -(-steps // 2), "the action that the end cut short counts"
    assert whole.frames == single.frames
    with pytest.raises(ValueError, match="no episode is running"):
        simulator.step(step_command())


@pytest.mark.parametrize(("limit", "executed"), [(6, 2), (8, 2), (9, 3), (12, 3)])
def test_the_limit_ends_a_chunk(simulator: Simulator, limit: int, executed: int) -> None:
    simulator.reset(reset_command(3, limit=limit))
    seen = simulator.step(chunk_command([TOWARDS_THE_POINT] * 8))
    assert (seen.control_steps, seen.executed) == (limit, executed)
    assert (seen.truncated, seen.terminated) == (True, False)


def test_policies_read_the_arm_as_robosuite_sees_it(simulator: Simulator) -> None:
    simulator.reset(reset_command(3))
    for _ in range(2):
        seen = simulator.step(chunk_command(CHUNK, repeat=2))
        observation = simulator._scene.problem._get_observations(force_update=True)
        expected = stock_proprio(observation)
        np.testing.assert_allclose(seen.robot_state.proprio, expected, atol=1e-6)
        assert np.linalg.norm(expected[3:6]) > 1, "no turn proves nothing"
    left, right = seen.robot_state.proprio[6:]
    assert left - right == pytest.approx(seen.robot_state.gripper_opening, abs=1e-7)


def test_the_cameras_that_are_known_before_anything_starts(simulator: Simulator) -> None:
    assert set(simulator._scene.cameras) == set(scene_cameras(EnvConfig(), "reach"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "index"), [("libero_object", 0), ("libero_10", 0), ("libero_10", 2), ("libero_10", 5)]
)
def test_the_cameras_of_each_kind_of_scene(suite: str, index: int) -> None:
    """A floor, a living room, a kitchen, a study. No suite plays on a coffee table."""
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    scene = Scene(TaskCatalog().find(suite, index).bddl_file, "fast")
    assert set(scene.cameras) == set(scene_cameras(EnvConfig(), suite))
    scene.close()


def test_frames_are_cropped_upright_jpeg(simulator: Simulator) -> None:
    seen = simulator.reset(reset_command(3, "robot0_eye_in_hand", "agentview"))
    assert [frame.camera for frame in seen.frames] == ["robot0_eye_in_hand", "agentview"]
    with Image.open(io.BytesIO(seen.frames[1].image)) as image:
        assert image.format == "JPEG"
        assert image.size == (80, 84)
        decoded = np.asarray(image).astype(float)
    whole = simulator._scene.render("agentview", SIZE)
    assert np.abs(decoded - whole[30:114, 22:102]).mean() < 2
    # Upright as the published checkpoints know it: the robot's base is at the upper edge.
    assert whole[: SIZE // 4].std() > whole[-SIZE // 4 :].std()


def test_the_same_seed_is_the_same_episode(simulator: Simulator) -> None:
    def play(seed: int) -> list[bytes]:
        seen = [simulator.reset(reset_command(seed))]
        seen += [simulator.step(step_command()) for _ in range(2)]
        return [answer.SerializeToString(deterministic=True) for answer in seen]

    first = play(2**40 + 7)
    other = play(8)
    assert play(2**40 + 7) == first
    assert other[0] != first[0]


def test_official_states_of_our_own_suite_differ(simulator: Simulator) -> None:
    task = rollout_pb2.Task(suite="reach", index=0)
    commands = [env_pb2.ResetEpisode(task=task, init_state=number) for number in (0, 1, 0)]
    frames = [simulator.reset(command).frames[0].image for command in commands]
    assert frames[0] == frames[2] != frames[1]


def test_the_limit_truncates_within_a_repeat(simulator: Simulator) -> None:
    seen = simulator.reset(reset_command(3, limit=6))
    seen = simulator.step(step_command())
    assert (seen.control_steps, seen.truncated) == (4, False)
    seen = simulator.step(step_command())
    assert (seen.control_steps, seen.truncated, seen.terminated) == (6, True, False)
    with pytest.raises(ValueError, match="no episode is running"):
        simulator.step(step_command())


def test_the_gripper_follows_the_datasets_convention(simulator: Simulator) -> None:
    opening = {}
    for gripper in (0.0, 1.0):
        simulator.reset(reset_command(3))
        action = [0.0] * 6 + [gripper]
        seen = simulator.step(env_pb2.StepEpisode(action=action, repeat=15))
        opening[gripper] = seen.robot_state.gripper_opening
        assert len(seen.robot_state.position) == 3
        assert np.linalg.norm(seen.robot_state.quaternion) == pytest.approx(1, abs=1e-5)
    assert opening[0.0] < 0.01 < 0.07 < opening[1.0]


@pytest.mark.parametrize("action", [[0.0] * 6, [0.0] * 8, [float("nan")] * 7])
def test_bad_actions_are_refused(simulator: Simulator, action: list[float]) -> None:
    simulator.reset(reset_command(3))
    with pytest.raises(ValueError, match="7 finite numbers"):
        simulator.step(env_pb2.StepEpisode(action=action))
    assert simulator.step(step_command()).control_steps == 4


@pytest.mark.parametrize("horizon", [2, 9, 2**32 - 1])
def test_bad_chunks_are_refused(simulator: Simulator, horizon: int) -> None:
    simulator.reset(reset_command(3))
    command = chunk_command(CHUNK)
    command.horizon = horizon
    with pytest.raises(ValueError, match=f"{horizon} actions are 7 finite numbers each, got 56"):
        simulator.step(command)
    assert simulator.step(step_command()).control_steps == 4


def test_bad_resets_are_refused(simulator: Simulator) -> None:
    task = rollout_pb2.Task(suite="reach", index=0)
    with pytest.raises(ValueError, match="needs init_state or placement_seed"):
        simulator.reset(env_pb2.ResetEpisode(task=task))
    with pytest.raises(ValueError, match=r"unknown camera 'behind'.*agentview"):
        simulator.reset(reset_command(3, "behind"))
    with pytest.raises(ValueError, match="100 official initial states"):
        simulator.reset(env_pb2.ResetEpisode(task=task, init_state=100))


def test_a_state_that_blows_up_is_reported(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlarl_env.simulators.libero.scene import DivergedError

    monkeypatch.chdir(tmp_path)  # MuJoCo logs into the working directory.
    simulator.reset(reset_command(3))
    simulator._scene._env.sim.data.qvel[0] = np.inf
    with pytest.raises(DivergedError):
        simulator.step(step_command())
    assert simulator.reset(reset_command(3)).control_steps == 0
    assert simulator.step(step_command()).control_steps == 4
