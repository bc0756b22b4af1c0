"""Demonstrations in HDF5: ours come back, LIBERO's are read, broken ones are named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")
pytest.importorskip("h5py")

import h5py

from vlarl_jobs.demonstrations.episodes import Episode
from vlarl_jobs.demonstrations.hdf5 import (
    DemoFileError,
    demo_files,
    read_episode,
    read_header,
    write_demos,
)

pytestmark = pytest.mark.sim

ATTRIBUTES = {
    "problem_info": '{"language_instruction": "reach"}',
    "bddl_file_name": "somewhere/bddl_files/libero_goal/turn_on_the_stove.bddl",
    "action_repeat": 4,
}


def episode(length: int, success: bool = True) -> Episode:
    rng = np.random.default_rng(length)
    return Episode(
        states=rng.normal(size=(length, 20)),
        robot_states=rng.normal(size=(length, 9)),
        actions=rng.normal(size=(length, 7)),
        expert_actions=rng.normal(size=(length, 7)),
        success=success,
        placement_seed=2**40 + length,
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "turn_on_the_stove_demo.hdf5"
    write_demos(path, [episode(3 + number, number != 1) for number in range(11)], ATTRIBUTES)
    return path


def change(path: Path, *, remove: str = "", **values: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        if remove:
            del file[remove]
        for name, value in values.items():
            del file["data/demo_2"][name]
            file["data/demo_2"][name] = value


def test_what_is_written_is_read(written: Path) -> None:
    header = read_header(written)
    assert (header.suite, header.task) == ("libero_goal", "turn_on_the_stove")
    assert header.action_repeat == 4
    assert header.demos == tuple(f"demo_{number}" for number in range(11))
    for number in (0, 1, 10):
        there, here = read_episode(written, f"demo_{number}"), episode(3 + number, number != 1)
        for name in ("states", "robot_states", "actions", "expert_actions"):
            np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
        assert (there.success, there.placement_seed) == (here.success, here.placement_seed)
    assert demo_files(written.parent) == [written]
    assert not list(written.parent.glob("*.partial"))


def test_it_is_laid_out_as_libero_lays_it_out(written: Path) -> None:
    with h5py.File(written) as file:
        data = file["data"]
        assert data.attrs["num_demos"] == 11
        assert data.attrs["total"] == sum(range(3, 14))
        demo = data["demo_2"]
        assert demo.attrs["num_samples"] == 5
        assert demo["rewards"][()].tolist() == demo["dones"][()].tolist() == [0, 0, 0, 0, 1]
        assert data["demo_1/rewards"][()].tolist() == [0, 0, 0, 0]
        np.testing.assert_array_equal(demo.attrs["init_state"], demo["states"][0])


def test_liberos_own_files_have_no_expert(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        demo = file["data/demo_0"]
        del demo["expert_actions"], demo.attrs["placement_seed"], demo.attrs["success"]
        del demo["robot_states"], file["data"].attrs["action_repeat"]
        demo.attrs["model_file"] = "<mujoco/>"
    assert read_header(written).action_repeat == 1
    read = read_episode(written, "demo_0")
    np.testing.assert_array_equal(read.expert_actions, read.actions)
    assert (read.success, read.placement_seed, read.fixtures) == (True, None, "<mujoco/>")
    assert read.robot_states.shape == (0, 9)


@pytest.mark.parametrize(
    ("removed", "sentence"),
    [
        ("data/demo_2/states", "data/demo_2 has no 'states'"),
        ("data/demo_2/actions", "data/demo_2 has no 'actions'"),
        ("data/demo_2", "data has no demo_2"),
        ("data", "has no group 'data'"),
    ],
)
def test_what_is_missing_is_named(written: Path, removed: str, sentence: str) -> None:
    change(written, remove=removed)
    with pytest.raises(DemoFileError, match=sentence) as caught:
        read_episode(written, "demo_2")
    assert str(written) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"actions": np.zeros((5, 6))}, r"actions \[5, 6\].*not \[T, 7\]"),
        ({"states": np.zeros((4, 20))}, r"states \[4, 20\]"),
        ({"states": np.full((5, 20), np.nan)}, "data/demo_2/states is not finite"),
        ({"expert_actions": np.zeros((4, 7))}, r"expert_actions \[4, 7\]"),
        ({"robot_states": np.zeros((5, 8))}, r"robot_states that aren't \[5, 9\] finite"),
        ({"robot_states": np.full((5, 9), np.nan)}, r"robot_states that aren't \[5, 9\] finite"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    written: Path, values: dict[str, np.ndarray], sentence: str
) -> None:
    change(written, **values)
    with pytest.raises(DemoFileError, match=sentence):
        read_episode(written, "demo_2")


def test_files_without_sense_are_named(tmp_path: Path, written: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DemoFileError, match=r"holds no \.hdf5 or \.h5 file"):
        demo_files(tmp_path / "empty")
    with pytest.raises(DemoFileError, match="doesn't exist"):
        demo_files(tmp_path / "nothing.hdf5")
    for content, sentence in (
        (written.read_bytes()[:1000], "can't be read as HDF5"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ):
        written.write_bytes(content)
        with pytest.raises(DemoFileError, match=sentence):
            read_header(written)
    with h5py.File(written, "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(DemoFileError, match="no group 'data'"):
        read_header(written)


def test_files_are_found_by_their_endings_one_folder_down_and_not_if_hidden(tmp_path: Path) -> None:
    (tmp_path / "libero_goal").mkdir()
    (tmp_path / ".parts").mkdir()
    names = ["b.hdf5", "a.h5", "C.HDF5", "libero_goal/d.hdf5"]
    others = ["._b.hdf5", ".b.hdf5", ".parts/e.hdf5", "libero_goal/._d.hdf5", "notes.txt"]
    for name in names + others:
        (tmp_path / name).touch()
    assert {str(file.relative_to(tmp_path)) for file in demo_files(tmp_path)} == {*names}
    assert demo_files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"], "named by the user"


@pytest.mark.parametrize(
    ("attributes", "task", "suite"),
    [
        ({"bddl_file_name": np.bytes_("a/libero_goal/b.bddl")}, "b", "libero_goal"),
        ({"bddl_file_name": np.array(["libero_goal\\b.bddl"], "O")}, "b", "libero_goal"),
        ({"env_args": '{"bddl_file": "x/libero_10/c.bddl"}'}, "c", "libero_10"),
        ({"env_args": b'{"env_kwargs": {"bddl_file_name": "x/s/d.bddl"}}'}, "d", "s"),
        ({"env_args": "no JSON"}, "turn_on_the_stove", ""),
        ({"env_args": '{"a": ' + "[" * 20_000}, "turn_on_the_stove", ""),
        ({}, "turn_on_the_stove", ""),
    ],
)
def test_the_task_is_named_by_attributes_or_by_the_file(
    written: Path, attributes: dict[str, object], task: str, suite: str
) -> None:
    with h5py.File(written, "r+") as file:
        for name in list(file["data"].attrs):
            del file["data"].attrs[name]
        for name, value in attributes.items():
            file["data"].attrs[name] = value
    header = read_header(written)
    assert (header.task, header.suite, header.ours, header.action_repeat) == (task, suite, False, 1)


def test_demonstrations_may_have_any_names(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        data = file["data"]
        for name in list(data):
            data.move(name, name.replace("demo", "episode"))
        data["number"] = 11
        file.create_group("mask")["train"] = np.array([b"episode_0"])
    demos = read_header(written).demos
    assert demos == tuple(f"episode_{number}" for number in range(11))
    np.testing.assert_array_equal(read_episode(written, "episode_2").states, episode(5).states)


@pytest.mark.parametrize(
    ("rewards", "dones", "success"),
    [
        ([0, 0, 0, 0, 1], [0, 0, 0, 0, 1], True),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 1], True),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], False),
        ([[0], [0], [0], [0], [1]], None, True),
        ([[0], [0], [0], [0], [0]], None, False),
        ([np.nan] * 5, [0, 0, 0, 0, 0], False),
        ([np.nan] * 4 + [1], None, True),
        ([0, 0, 1], [0, 0, 0, 0, 0], False),
        ([b"a"] * 5, None, True),
        (None, [0, 0, 0, 0, 0], False),
        (None, [0, 0, 0, 0, 1], True),
        (None, None, True),
    ],
)
def test_success_is_what_rewards_or_dones_say(
    written: Path, rewards: list[Any] | None, dones: list[int] | None, success: bool
) -> None:
    with others(written) as demo:
        del demo["rewards"], demo["dones"]
        for name, values in (("rewards", rewards), ("dones", dones)):
            if values is not None:
                demo[name] = values
    read = read_episode(written, "demo_2")
    assert (read.success, read.seen_to_succeed) == (success, False)


@contextmanager
def others(path: Path) -> Iterator[Any]:
    """demo_2 of a file that somebody else wrote."""
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_2"]
        del file["data"].attrs["action_repeat"], demo.attrs["success"], demo.attrs["placement_seed"]
        yield demo


@pytest.mark.parametrize(
    ("attributes", "arrays"),
    [
        ({"success": "False"}, {}),
        ({"success": True}, {}),
        ({"success": np.ones(5)}, {}),
        ({"placement_seed": 7}, {}),
        ({"placement_seed": "seven"}, {}),
        ({"placement_seed": np.arange(3)}, {}),
        ({"placement_seed": h5py.Empty("f8")}, {}),
        ({"model_file": ""}, {}),
        ({}, {"robot_states": np.zeros((5, 8))}),
        ({}, {"robot_states": np.full((5, 9), np.nan)}),
        ({}, {"robot_states": np.full((5, 9), b"a")}),
    ],
)
def test_what_only_our_simulator_knows_is_taken_from_no_other_file(
    written: Path, attributes: dict[str, object], arrays: dict[str, np.ndarray]
) -> None:
    with others(written) as demo:
        for name, value in attributes.items():
            demo.attrs[name] = value
        for name, array in arrays.items():
            del demo[name]
            demo[name] = array
    read = read_episode(written, "demo_2")
    assert not read.seen_to_succeed, "the scene tells"
    assert (read.success, read.placement_seed, read.fixtures) == (True, None, None)
    assert read.robot_states.shape == ((0, 9) if arrays else (5, 9))


def test_attributes_of_ours_that_somebody_changed_are_not_believed(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file["data/demo_2"].attrs["success"] = "False"
        for number, seed in enumerate(["seven", np.arange(3), -1, 1.5, h5py.Empty("f8")], 3):
            file[f"data/demo_{number}"].attrs["placement_seed"] = seed
        file["data"].attrs["action_repeat"] = "²"
    assert not read_episode(written, "demo_2").seen_to_succeed
    for number in range(3, 8):
        with pytest.raises(DemoFileError, match=f"data/demo_{number} has the placement_seed"):
            read_episode(written, f"demo_{number}")
    with pytest.raises(DemoFileError, match="action_repeat is '²', no number of steps"):
        read_header(written)
