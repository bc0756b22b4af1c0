"""Collecting and converting with real simulators: killed, resumed, compared with the simulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")
pytest.importorskip("h5py")

import h5py

from tests.recordings import Edit, acted, changed, variant
from vlarl.config import EnvConfig
from vlarl.data.dataset import Dataset, read_dataset
from vlarl.env.v1 import env_pb2
from vlarl.images import decode_image
from vlarl.models.statistics import to_simulator
from vlarl.rollout.v1 import rollout_pb2

pytestmark = pytest.mark.sim

ROOT = Path(__file__).parents[3]
EPISODES = 6
CAMERAS = ("agentview", "robot0_eye_in_hand")
CROP = (30, 22, 84, 80)
REACH = "reach_the_point_above_the_bowl_demo.hdf5"


def demos(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vlarl", "demos", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(demos(*arguments), cwd=ROOT, capture_output=True, text=True)


def collection(out: Path, episodes: int) -> list[object]:
    settings = ["--suite", "reach", "--action-repeat", 4, "--noise", 0.25, "--seed", 3]
    return ["collect", *settings, "--episodes", episodes, "--out", out]


def conversion(file: Path, out: Path) -> list[object]:
    crop = ",".join(map(str, CROP))
    cameras = [word for camera in CAMERAS for word in ("--camera", camera)]
    taken = ["--size", 128, "--crop", crop, *cameras]
    return ["convert", file, "--out", out, *taken, "--processes", 1]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demos")
    done = run(*collection(out, EPISODES))
    assert done.returncode == 0, done.stderr
    return out / REACH


@pytest.fixture(scope="module")
def dataset(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("dataset")
    done = run(*conversion(collected, out))
    assert done.returncode == 0, done.stderr
    return read_dataset(out)


def content(file: Path) -> dict[str, np.ndarray]:
    arrays = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(file) as opened:
        opened.visititems(add)
    return arrays


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_a_collection_holds_successes_with_clean_actions_beside_noisy_ones(collected: Path) -> None:
    arrays = content(collected)
    with h5py.File(collected) as file:
        data = file["data"]
        assert data.attrs["num_demos"] == len(data) == EPISODES
        assert data.attrs["bddl_file_name"] == "reach/reach_the_point_above_the_bowl.bddl"
        info = json.loads(data.attrs["problem_info"])
        assert info["language_instruction"] == "reach the point above the bowl"
        seeds = {demo.attrs["placement_seed"] for demo in data.values()}
        assert len(seeds) == EPISODES
    clean = np.concatenate([arrays[f"data/demo_{n}/expert_actions"] for n in range(EPISODES)])
    noisy = np.concatenate([arrays[f"data/demo_{n}/actions"] for n in range(EPISODES)])
    changed = (clean != noisy).any(axis=1)
    assert 0.1 < changed.mean() < 0.9
    assert (clean[:, 3:] == noisy[:, 3:]).all()
    assert all(arrays[f"data/demo_{n}/rewards"][-1] == 1 for n in range(EPISODES))


@pytest.mark.slow
def test_a_collection_that_is_killed_goes_on_to_the_same_end(
    collected: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(demos(*collection(tmp_path, EPISODES)), cwd=ROOT) as first:
        deadline = time.monotonic() + 240  # the first scene takes long beside others
        while not list(tmp_path.glob(".parts/*/*.npz")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
    kept = {part: part.stat().st_mtime_ns for part in tmp_path.glob(".parts/*/*.npz")}
    assert kept
    second = run(*collection(tmp_path, EPISODES))
    assert second.returncode == 0, second.stderr
    assert_equal(content(tmp_path / REACH), content(collected))
    assert "another episodes" in refusal(*collection(tmp_path, EPISODES + 1))


def test_a_converted_sample_is_what_the_simulator_reports(
    collected: Path, dataset: Dataset
) -> None:
    """Of two cameras; the arm's state as robosuite has the turn of the hand."""
    from robosuite.utils.transform_utils import quat2axisangle

    from vlarl_env.simulators.episode import Simulator
    from vlarl_env.simulators.registry import TaskCatalog

    config = EnvConfig(profile="fast", render_size=128, crop=CROP, action_repeat=4, cameras=CAMERAS)
    assert dataset.capture.cameras == CAMERAS
    simulator = Simulator(TaskCatalog().find("reach", 0), config)
    samples = dataset.tasks[0]
    assert (samples.suite, samples.index) == ("reach", 0)
    assert samples.instruction == "reach the point above the bowl"
    arrays = content(collected)
    with h5py.File(collected) as file:
        seeds = [int(file[f"data/demo_{n}"].attrs["placement_seed"]) for n in range(EPISODES)]
    for number, seed in enumerate(seeds):
        own = np.flatnonzero(samples.episodes == number)
        task = rollout_pb2.Task(suite="reach", index=0)
        wanted = env_pb2.ResetEpisode(task=task, placement_seed=seed, cameras=CAMERAS)
        seen = simulator.reset(wanted)
        executed = arrays[f"data/demo_{number}/actions"][::4]
        clean = arrays[f"data/demo_{number}/expert_actions"][::4]
        np.testing.assert_allclose(to_simulator(samples.actions[own]), clean, atol=1e-6)
        for index, action in zip(own, executed, strict=True):
            assert not seen.terminated
            main, wrist = (frame.image for frame in seen.frames)
            assert samples.frames[index] == main
            # A pose that is computed back may round otherwise, and this camera moves with it.
            pair = (samples.further_frames[0][int(index)], wrist)
            shown, now = (decode_image(one).astype(int) for one in pair)
            assert abs(shown - now).mean() < 0.1
            state, arm = samples.proprio[index], seen.robot_state
            turn = quat2axisangle(np.array(arm.quaternion))
            np.testing.assert_allclose(state[:6], [*arm.position, *turn], atol=1e-5)
            assert state[6] - state[7] == pytest.approx(arm.gripper_opening, abs=1e-6)
            hand = [samples.poses[index][samples.pose_names.index(f"hand.{a}")] for a in "xyz"]
            np.testing.assert_allclose(hand, seen.robot_state.position, atol=1e-5)
            command = env_pb2.StepEpisode(action=[*action[:6], (1 - action[6]) / 2])
            seen = simulator.step(command)
        assert seen.terminated
    simulator.close()


def test_poses_say_where_the_goal_is(dataset: Dataset) -> None:
    samples = dataset.tasks[0]
    column = samples.pose_names.index
    bowl, goal = column("akita_black_bowl_1.z"), column("goal_0.z")
    np.testing.assert_allclose(samples.poses[:, goal] - samples.poses[:, bowl], 0.10, atol=1e-6)
    assert samples.poses[:, column("opening")].min() > 0.07


@pytest.mark.slow
def test_motion_is_the_poses_at_every_control_step(dataset: Dataset) -> None:
    """The recording's numbers against those of the scene that was drawn."""
    (samples,) = dataset.tasks
    motion = samples.motion
    assert motion is not None
    now = motion.offsets[samples.episodes] + motion.starts
    np.testing.assert_allclose(motion.hand[now], samples.poses[:, :3], atol=1e-6)
    opening = samples.poses[:, samples.pose_names.index("opening")]
    np.testing.assert_allclose(motion.opening[now], opening, atol=1e-6)
    assert len(motion.hand) > 2 * len(samples.frames)


def test_each_demonstration_says_which_placement_it_is_of(
    collected: Path, dataset: Dataset
) -> None:
    (samples,) = dataset.tasks
    assert samples.placements is not None
    with h5py.File(collected) as file:
        for episode, placement in zip(samples.episodes, samples.placements, strict=True):
            assert file[f"data/demo_{episode}"].attrs["placement_seed"] == placement


def test_liberos_own_files_are_read_as_they_are(collected: Path, tmp_path: Path) -> None:
    """A file with what LIBERO's have and no more, recorded at every control step."""
    states = content(collected)["data/demo_0/states"]
    recorded = np.zeros((len(states), 7))
    recorded[:, 0] = np.linspace(0.1, 0.5, len(states))
    recorded[:, 6] = -1
    recorded[1, 0] = 0  # a no-op
    recorded[-1, 6] = 1
    file = tmp_path / "some_demo.hdf5"
    with h5py.File(file, "w") as opened:
        data = opened.create_group("data")
        data.attrs["problem_info"] = "{}"
        data.attrs["bddl_file_name"] = "bddl_files/reach/reach_the_point_above_the_bowl.bddl"
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo["states"], demo["actions"] = states, recorded
    moved = "--trust-actions"  # the hand did something else
    done = run(*conversion(file, tmp_path / "single"), moved)
    assert done.returncode == 0, done.stderr
    assert "gripper -1 opens, 1 closes (as its fingers move)" in done.stderr
    (samples,) = read_dataset(tmp_path / "single").tasks
    kept = np.delete(np.arange(len(states)), 1)
    assert samples.episodes.tolist() == [0] * len(kept) + [1] * len(kept)
    np.testing.assert_allclose(samples.actions[: len(kept), 0], recorded[kept, 0], rtol=1e-6)
    assert samples.actions[: len(kept), 6].tolist() == [1] * (len(kept) - 1) + [0]
    assert samples.motion is None
    assert samples.placements is None
    done = run(*conversion(file, tmp_path / "grouped"), moved, "--action-repeat", 4)
    assert done.returncode == 0, done.stderr
    assert read_dataset(tmp_path / "grouped").capture.action_repeat == 4


def refusal(*arguments: object) -> str:
    """What the command says in this process, which it ends with one sentence."""
    from typer.testing import CliRunner

    from vlarl_cli import app

    refused = CliRunner().invoke(app, ["demos", *map(str, arguments)])
    assert refused.exit_code == 1, refused.output
    assert refused.stderr.count("error:") == 1
    assert "Traceback" not in refused.stderr
    return " ".join(refused.stderr.split())


def test_what_cannot_be_converted_is_said_in_one_sentence(collected: Path, tmp_path: Path) -> None:
    held = refusal(*conversion(collected, tmp_path), "--action-repeat", 3)
    assert "holds each action for 4 control steps" in held
    empty = refusal("convert", tmp_path, "--out", tmp_path / "out")
    assert "holds no .hdf5 or .h5 file" in empty
    for wrong, sentence in (
        (("--task", "reach"), "--task is SUITE/NUMBER"),
        (("--task", "reach/9"), "so there is no number 9"),
        (("--action-scale", "0,1"), "--action-scale is one positive number or two"),
        (("--camera", "nowhere"), "has no camera 'nowhere'"),
    ):
        assert sentence in refusal(*conversion(collected, tmp_path / "out"), *wrong)
        assert not (tmp_path / "out").exists(), "nothing is written"


def coarse(path: Path, out: Path, *options: object, processes: int = 1) -> list[object]:
    """A conversion with few frames, and small ones."""
    few = ["--size", 32, "--action-repeat", 20, "--processes", processes]
    return ["convert", path, "--out", out, *few, *options]


@pytest.mark.slow
def test_whoever_wrote_them_the_dataset_is_the_same(tmp_path: Path) -> None:
    """Nested, without attributes, gripper 1 open, and one more that is broken, beside rubbish."""

    def edit(data: Any) -> None:  # noqa: ANN401 - h5py has no types
        acted(gripper=lambda gripper: (1 - gripper) / 2)(data)
        for key in [*data.attrs]:
            del data.attrs[key]
        data.copy("demo_0", "demo_01")
        changed("actions", lambda actions: actions * np.nan, "demo_01")(data)
        data.copy("demo_0", "demo_02")
        data["demo_02"].attrs["model_file"] = '<body name="wooden_cabinet_1_main" pos="a b c">'

    plain = variant(tmp_path / "plain")
    other = variant(tmp_path / "other" / "libero_spatial_no_noops", edit)
    (other.parent / f"._{other.name}").write_bytes(b"resource fork")
    datasets = []
    for number, folder in enumerate((plain.parent, other.parent.parent)):
        done = run(*coarse(folder, tmp_path / str(number), processes=1 + number))
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        datasets.append(read_dataset(tmp_path / str(number)).tasks[0])
    one, same = datasets
    assert "left out: " in done.stderr
    assert "demo_01/actions is not finite" in done.stderr
    assert "demo_02 has a model_file that places a fixture at 'a b c'" in done.stderr
    assert "left out 2 of 4 demonstrations" in done.stderr
    assert (one.suite, one.index) == (same.suite, same.index) == ("libero_spatial", 0)
    assert set(one.actions[:, 6]) == {0, 1}
    np.testing.assert_array_equal(one.actions, same.actions)
    np.testing.assert_array_equal(one.episodes, same.episodes)
    assert list(one.frames) == list(same.frames)
    again = run(*coarse(other.parent, tmp_path / "1"))
    assert again.returncode == 0, again.stderr
    for options, changed_key in ((["--keep-failures"], "keep_failures"), ([], "file")):
        folder = other.parent if options else plain.parent
        refused = refusal(*coarse(folder, tmp_path / "1", *options))
        assert f"made with another {changed_key}" in refused


@pytest.mark.slow
def test_what_never_reaches_its_goal_is_left_out(tmp_path: Path) -> None:
    """LIBERO's files reward the last step of each demonstration, whatever it reached; others reward
    none. The scene tells.
    """

    def cut(*demos: str) -> Edit:
        def edit(data: Any) -> None:  # noqa: ANN401
            for name in ("actions", "states", "robot_states", "rewards", "dones"):
                changed(name, lambda array: array[:40], *demos)(data)
            for demo in demos:
                data[demo]["rewards"][-1] = 1
                data[demo].attrs["success"] = "True"
            data["demo_0"]["rewards"][:] = 0

        return edit

    file = variant(tmp_path / "one", cut("demo_1"))
    done = run(*coarse(file, tmp_path / "few"))
    assert done.returncode == 0, done.stderr
    assert "demo_1 never reaches the goal of libero_spatial task 0" in done.stderr
    assert "left out 1 of 2 demonstrations" in done.stderr
    assert set(read_dataset(tmp_path / "few").tasks[0].episodes) == {0}
    file = variant(tmp_path / "all", cut("demo_0", "demo_1"))
    done = run(*coarse(file, tmp_path / "none"))
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "none of its 2 demonstrations can be used" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()
    done = run(*coarse(file, tmp_path / "kept", "--keep-failures"))
    assert done.returncode == 0, done.stderr
    assert set(read_dataset(tmp_path / "kept").tasks[0].episodes) == {0, 1}


@pytest.mark.slow
def test_inspection_shows_numbers_and_pictures(collected: Path, tmp_path: Path) -> None:
    done = run("inspect", collected, "--out", tmp_path, "--episodes", 2)
    assert done.returncode == 0, done.stderr
    assert "reach_the_point" in done.stdout
    assert "gripper" in done.stdout
    from PIL import Image

    with Image.open(tmp_path / "episodes.png") as sheet:
        assert sheet.size == (8 * 258, 2 * 258)
    assert (tmp_path / "episodes.mp4").stat().st_size > 1000


def test_inspecting_a_scene_without_room_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from vlarl_cli import app
    from vlarl_env.errors import BrokenSceneError

    def no_room(*_: object) -> None:
        raise BrokenSceneError("crowd.bddl: there is no room; widen their :ranges")

    monkeypatch.setattr("vlarl_jobs.demonstrations.scene_cache.Scene", no_room)
    pictures = tmp_path / "pictures"
    shown = CliRunner().invoke(
        app, ["demos", "inspect", str(variant(tmp_path)), "--out", str(pictures)]
    )
    assert shown.exit_code == 1
    assert shown.output.endswith("\nerror: crowd.bddl: there is no room; widen their :ranges\n")
    assert not pictures.exists()
