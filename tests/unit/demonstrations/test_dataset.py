"""Datasets of demonstrations: what is written is read, and what is broken is named."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

from vlarl.data.dataset import (
    Capture,
    DatasetError,
    Frames,
    Motion,
    TaskSamples,
    abandon_dataset,
    check_dataset,
    dataset_digest,
    describe_dataset,
    read_dataset,
    task_file,
    write_task,
)

CAPTURE = Capture("agentview", 128, (0, 0, 84, 84), "fast", 5)


def samples(suite: str = "reach", count: int = 5) -> TaskSamples:
    rng = np.random.default_rng(count)
    actions = rng.uniform(-1, 1, size=(count, 7)).astype(np.float32)
    actions[:, 6] = actions[:, 6] > 0
    return TaskSamples(
        suite=suite,
        index=0,
        instruction="reach",
        frames=Frames.of([bytes([number]) * (number + 1) for number in range(count)]),
        actions=actions,
        episodes=np.arange(count, dtype=np.int32) // 2,
        poses=rng.normal(size=(count, 3)).astype(np.float32),
        pose_names=("x", "y", "z"),
    )


def test_a_dataset_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for suite in ("reach", "approach"):
        write_task(tmp_path, CAPTURE, samples(suite))
    dataset = read_dataset(tmp_path)
    assert dataset.capture == CAPTURE
    assert [task.suite for task in dataset.tasks] == ["approach", "reach"]
    there, here = dataset.tasks[1], samples()
    assert list(there.frames) == [b"\0", b"\1" * 2, b"\2" * 3, b"\3" * 4, b"\4" * 5]
    assert (there.instruction, there.pose_names) == (here.instruction, here.pose_names)
    for name in ("actions", "episodes", "poses"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("instruction", ["reach", 'put the "bowl"\ton the plateâ\u2028'])
def test_a_dataset_made_again_is_the_same_to_the_byte(tmp_path: Path, instruction: str) -> None:
    """A run goes on with a dataset of the same digest, which has the file's header in it."""
    files = []
    for number in range(8):  # the library's order is random: one in 24 is like the one before
        folder = tmp_path / str(number)
        files.append(write_task(folder, CAPTURE, replace(samples(), instruction=instruction)))
    assert len({file.read_bytes() for file in files}) == 1
    (task,) = read_dataset(tmp_path / "0").tasks
    assert task.instruction == instruction


def motion() -> Motion:
    """Of `samples`: three episodes of 3, 2 and 4 control steps, the last with one sample."""
    return Motion(
        hand=np.arange(27, dtype=np.float32).reshape(9, 3),
        opening=np.linspace(0, 0.08, 9, dtype=np.float32),
        offsets=np.array([0, 3, 5, 9]),
        starts=np.array([0, 2, 0, 1, 3], np.int32),
    )


def test_frames_of_several_cameras_come_back_with_proprioception(tmp_path: Path) -> None:
    both = replace(CAPTURE, further_cameras=("wrist", "side"))
    further = tuple(
        Frames.of([bytes([number, camera]) * camera for number in range(5)]) for camera in (7, 9)
    )
    state = np.arange(40, dtype=np.float32).reshape(5, 8) / 7
    whole = replace(samples(), further_frames=further, proprio=state)
    write_task(tmp_path, both, whole)
    check_dataset(tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.capture == both
    assert dataset.capture.cameras == ("agentview", "wrist", "side")
    (task,) = dataset.tasks
    assert [list(frames) for frames in task.all_frames] == [
        [bytes([number]) * (number + 1) for number in range(5)],
        *([bytes([number, camera]) * camera for number in range(5)] for camera in (7, 9)),
    ]
    np.testing.assert_array_equal(task.proprio, state)
    some = task.only(np.array([False, True, False, True, False]))
    assert list(some.further_frames[1]) == [bytes([1, 9]) * 9, bytes([3, 9]) * 9]
    np.testing.assert_array_equal(some.proprio, state[[1, 3]])
    with pytest.raises(DatasetError, match=r"holds frames taken as .*wrist.* not as"):
        write_task(tmp_path, CAPTURE, samples("approach"))


def test_a_dataset_of_one_camera_is_what_it_was(tmp_path: Path) -> None:
    """The bytes and the digest that version 0.1 gave: a run may go on with it."""
    file = write_task(tmp_path, CAPTURE, samples())
    for path, digest in (
        (file, "7932922f61c3067d"),
        (tmp_path / "dataset.json", "93f9c8a8ce0a9302"),
    ):
        assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest), path
    assert dataset_digest(tmp_path).startswith("d4c504f991390a32")
    (task,) = read_dataset(tmp_path).tasks
    assert task.proprio is None
    assert task.further_frames == ()


def test_what_a_policy_reads_and_a_dataset_lacks_is_found_before_anything_starts(
    tmp_path: Path,
) -> None:
    write_task(tmp_path, CAPTURE, samples())
    check_dataset(tmp_path, ("front",))  # a single camera takes the main one's place
    with pytest.raises(DatasetError, match=r"no frames of wrist, .*--camera agentview --camera wr"):
        check_dataset(tmp_path, ("agentview", "wrist"))
    with pytest.raises(DatasetError, match=r"reach task 0 has 0 numbers of proprio.* reads 8"):
        check_dataset(tmp_path, ("agentview",), 8)
    write_task(tmp_path, CAPTURE, replace(samples(), proprio=np.zeros((5, 8), np.float32)))
    check_dataset(tmp_path, ("agentview",), 8)


def test_cameras_and_proprioception_must_fit_the_samples(tmp_path: Path) -> None:
    few = Frames.of([b"x"] * 4)
    with pytest.raises(DatasetError, match="5 frames of one camera, 4 of another"):
        replace(samples(), further_frames=(few,))
    for state, said in (
        (np.zeros((4, 8), np.float32), r"5 frames with proprioception \[4, 8\]"),
        (np.zeros(5, np.float32), r"proprioception \[5\]"),
        (np.full((5, 8), np.inf, np.float32), "proprioception is not finite"),
    ):
        with pytest.raises(DatasetError, match=said):
            replace(samples(), proprio=state)
    two = replace(CAPTURE, further_cameras=("wrist",))
    with pytest.raises(DatasetError, match="frames of 1 cameras, not of agentview, wrist"):
        write_task(tmp_path, two, samples())
    assert not list(tmp_path.iterdir())
    write_task(tmp_path, CAPTURE, samples())
    described = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "further_cameras": ["wrist"]}))
    with pytest.raises(DatasetError, match=r"reach-00.*frames_1.*make it anew"):
        check_dataset(tmp_path)


def test_frames_are_a_sequence() -> None:
    frames = Frames.of([b"a", b"bc", b"def"])
    assert (frames[-1], frames[-3]) == (b"def", b"a")
    assert list(reversed(frames)) == [b"def", b"bc", b"a"]
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            frames[beyond]


def test_motion_comes_back_with_its_samples(tmp_path: Path) -> None:
    write_task(tmp_path, CAPTURE, replace(samples(), motion=motion()))
    (task,) = read_dataset(tmp_path).tasks
    assert task.motion is not None
    for name, value in vars(motion()).items():
        np.testing.assert_array_equal(getattr(task.motion, name), value)
    write_task(tmp_path, CAPTURE, samples())
    assert read_dataset(tmp_path).tasks[0].motion is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"hand": np.zeros((8, 3), np.float32)},
        {"opening": np.zeros(8, np.float32)},
        {"offsets": np.array([0, 3, 5])},
        {"offsets": np.array([0, 6, 5, 9])},
        {"starts": np.array([0, 2, 0, 1], np.int32)},
        {"starts": np.array([0, 3, 0, 1, 3], np.int32)},
    ],
)
def test_motion_must_be_that_of_the_samples(wrong: dict[str, np.ndarray]) -> None:
    with pytest.raises(DatasetError, match="motion isn't that of"):
        replace(samples(), motion=replace(motion(), **wrong))


def test_a_task_may_come_in_parts_with_failures(tmp_path: Path) -> None:
    first = replace(
        samples(),
        placements=np.array([7, 7, -3, -3, 9]),
        succeeded=np.array([True, True, False, False, True]),
    )
    write_task(tmp_path, CAPTURE, first, "00000")
    write_task(tmp_path, CAPTURE, samples(), "00001")
    there, second = read_dataset(tmp_path).tasks
    assert there.placements is not None
    assert there.succeeded is not None
    np.testing.assert_array_equal(there.placements, [7, 7, -3, -3, 9])
    np.testing.assert_array_equal(there.succeeded, [True, True, False, False, True])
    assert second.placements is second.succeeded is None
    with pytest.raises(DatasetError, match=r"5 frames with succeeded \[4\]"):
        replace(samples(), succeeded=np.ones(4, np.bool_))


def test_some_of_the_samples_stay_what_they_were() -> None:
    chosen = np.array([False, True, True, False, True])
    whole = replace(samples(), motion=motion(), placements=np.arange(5))
    some = whole.only(chosen)
    assert list(some.frames) == [b"\1" * 2, b"\2" * 3, b"\4" * 5]
    np.testing.assert_array_equal(some.actions, whole.actions[chosen])
    np.testing.assert_array_equal(some.episodes, [0, 1, 2])
    np.testing.assert_array_equal(some.placements, [1, 2, 4])
    assert some.motion is not None
    np.testing.assert_array_equal(some.motion.starts, [2, 0, 3])
    np.testing.assert_array_equal(some.motion.hand, motion().hand)
    assert some.succeeded is None


def test_frames_taken_in_another_way_do_not_mix(tmp_path: Path) -> None:
    write_task(tmp_path, CAPTURE, samples())
    with pytest.raises(DatasetError, match="profile='fast'"):
        write_task(tmp_path, replace(CAPTURE, profile="faithful"), samples("approach"))


def test_samples_must_fit_together() -> None:
    with pytest.raises(DatasetError, match="5 frames with actions"):
        replace(samples(), actions=np.zeros((4, 7), np.float32))
    with pytest.raises(DatasetError, match="not finite"):
        replace(samples(), actions=np.full((5, 7), np.nan, np.float32))


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset here"):
        read_dataset(tmp_path)
    write_task(tmp_path, CAPTURE, samples())
    file = task_file(tmp_path, "reach", 0)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="reach-00"):
        read_dataset(tmp_path)
    file.unlink()
    with pytest.raises(DatasetError, match="holds no task"):
        read_dataset(tmp_path)
    description = tmp_path / "dataset.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "format": 9}))
    with pytest.raises(DatasetError, match="another format"):
        read_dataset(tmp_path)


def test_what_no_demonstration_can_hold_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A policy's own actions may be anything: the simulator rounds and cuts them."""
    half, far = samples().actions.copy(), samples().actions.copy()
    half[2, 6], far[2, 1] = 0.5, -3.75
    for wrong, sentence in ((half, "neither 0 .closed. nor 1 .open."), (far, "of up to 3.75")):
        write_task(tmp_path, CAPTURE, replace(samples(), actions=wrong))
        for read in (check_dataset, read_dataset):
            with pytest.raises(DatasetError, match=f"reach-00.*{sentence}.*convert"):
                read(tmp_path)
        rollouts = replace(samples(), actions=wrong, succeeded=np.ones(5, np.bool_))
        write_task(tmp_path, CAPTURE, rollouts)
        check_dataset(tmp_path)
        read_dataset(tmp_path)


def test_damage_is_found_without_reading_the_frames(tmp_path: Path) -> None:
    write_task(tmp_path, CAPTURE, samples())
    check_dataset(tmp_path)
    (tmp_path / "._reach-00.safetensors").write_bytes(b"resource fork")
    check_dataset(tmp_path)
    torn = Frames(samples().frames.buffer, samples().frames.offsets - 1)
    write_task(tmp_path, CAPTURE, replace(samples(), frames=torn))
    with pytest.raises(DatasetError, match=r"reach-00.*frames are damaged"):
        check_dataset(tmp_path)
    write_task(tmp_path, CAPTURE, samples().only(np.zeros(5, np.bool_)))
    with pytest.raises(DatasetError, match="holds no sample"):
        check_dataset(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(DatasetError, match=f"{folder} can't be made: .*choose another"):
            describe_dataset(folder, CAPTURE)


def test_a_description_without_a_task_is_taken_back(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        existed = folder.exists()
        describe_dataset(folder, CAPTURE)
        abandon_dataset(folder, keep_folder=existed)
    assert [*tmp_path.rglob("*")] == [old]
    describe_dataset(new, CAPTURE)
    (new / "notes.txt").touch()
    abandon_dataset(new, keep_folder=False)
    assert [*new.iterdir()] == [new / "notes.txt"], "somebody's"
