"""Demonstrations as people have them, made from one recording: what is read, how, what isn't."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("libero")
pytest.importorskip("h5py")

import h5py
import robosuite

from tests.recordings import (
    RECORDED,
    TASK,
    Edit,
    acted,
    changed,
    variant,
    without_attributes,
)
from vlarl.data.dataset import DatasetError
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_jobs.demonstrations.arm import finger_opening, hand_positions
from vlarl_jobs.demonstrations.converting import ORIGINS, Source, convert, find_sources
from vlarl_jobs.demonstrations.examining import Terms, examine
from vlarl_jobs.demonstrations.hdf5 import DemoFileError, read_episode
from vlarl_jobs.demonstrations.messages import RenderOrder, Settings
from vlarl_jobs.demonstrations.worker_processes import WorkerDiedError

pytestmark = pytest.mark.sim

PEOPLES = Path(robosuite.__file__).parent / "models/assets/demonstrations/lift/demo.hdf5"
"""Three demonstrations of a person at a keyboard, which come with robosuite."""

CATALOG = TaskCatalog()


def robomimics(data: Any) -> None:  # noqa: ANN401
    without_attributes(data)
    data.attrs["env_args"] = json.dumps({"env_name": "Libero_Tabletop", "type": 1})
    data.file.create_group("mask")["train"] = np.array([b"demo_0"])
    for demo in data.values():
        demo.attrs["model_file"] = b"<mujoco/>"


def find(path: Path, **terms: Any) -> list[Source]:  # noqa: ANN401
    return find_sources(path, CATALOG, Terms(**terms))


def simulators_actions(source: Source) -> np.ndarray:
    """All actions as the simulator would be given them."""
    conventions = source.examined.conventions
    return np.concatenate(
        [conventions.apply(read_episode(source.file, demo).actions) for demo in source.demos]
    )


@pytest.fixture(scope="module")
def executed() -> np.ndarray:
    """What the simulator was given."""
    with h5py.File(RECORDED) as file:
        return np.concatenate([demo["actions"][()] for demo in file["data"].values()])


@pytest.mark.parametrize(
    ("edit", "name", "told"),
    [
        (lambda data: None, f"{TASK}_demo.hdf5", "-1 opens, 1 closes (as its fingers move)"),
        (without_attributes, f"{TASK}_demo.hdf5", "-1 opens, 1 closes (as its fingers move)"),
        (without_attributes, f"{TASK}.H5", "-1 opens, 1 closes (as its fingers move)"),
        (without_attributes, f"libero_spatial_no_noops/{TASK}_demo.hdf5", "-1 opens"),
        (robomimics, f"{TASK}_demo.hdf5", "-1 opens, 1 closes (as its fingers move)"),
        (acted(gripper=lambda g: (g + 1) / 2), "demo.hdf5", "0 opens, 1 closes (as its fingers"),
        (acted(gripper=lambda g: (1 - g) / 2), "demo.hdf5", "0 closes, 1 opens (as its fingers"),
        (acted(gripper=lambda g: -g), "demo.hdf5", "-1 closes, 1 opens (as its fingers move)"),
        (acted(gripper=lambda g: 0.3 * g), "demo.hdf5", "-1 opens, 1 closes (as its fingers"),
        (acted(gripper=lambda g: 0.5 + 0.45 * g), "demo.hdf5", "0 opens, 1 closes (as its fing"),
    ],
)
def test_what_can_be_read_means_what_was_executed(
    tmp_path: Path, executed: np.ndarray, edit: Edit, name: str, told: str
) -> None:
    path = variant(tmp_path, edit, name)
    (source,) = find(tmp_path)
    assert (source.file, source.task.suite, source.task.index) == (path, "libero_spatial", 0)
    assert told in source.words()
    assert ("fixtures as" in source.words()) == (edit is not robomimics)
    assert not source.examined.left_out
    np.testing.assert_allclose(simulators_actions(source), executed, atol=1e-12)


def test_movements_that_are_too_large_are_named_with_their_scale(
    tmp_path: Path, executed: np.ndarray
) -> None:
    variant(tmp_path, acted(3.75))
    with pytest.raises(DemoFileError, match=r"of up to 3\.75, .* try --action-scale 0\.2667"):
        find(tmp_path)
    (source,) = find(tmp_path, scale=(0.2667, 0.2667))
    np.testing.assert_allclose(simulators_actions(source), executed, atol=1e-3)
    with pytest.raises(DemoFileError, match=r"whole actions say, not as those that --clip cuts"):
        find(tmp_path, clip=True)


def measured(translation: float, rotation: float) -> Edit:
    """Actions in other units."""
    units = np.array([translation] * 3 + [rotation] * 3 + [1])
    return changed("actions", lambda actions: actions * units)


@pytest.mark.parametrize(
    ("units", "advice", "right"),
    [
        (  # metres that the hand moved; rotations left alone
            (0.0115, 1),
            "try --action-scale 86.96,1 (whether that is right for its rotations can't be told)",
            (86.96, 1.0),
        ),
        (  # what OSC_POSE puts out
            (0.05, 0.5),
            "rescale them with --action-scale 20,2 if its rotations are in radians, 20,1 if they "
            "are as the arm takes them, or take",
            (20.0, 2.0),
        ),
        (
            (3.75, 3.75),
            "try --action-scale 0.2667,0.2667 if its rotations are scaled alike, 0.2667,1 if they "
            "are as the arm takes them",
            (0.2667, 0.2667),
        ),
        (
            (1, 10),
            "has rotations of up to 2.02, though the arm executes 1 at most: rescale them with "
            "--action-scale 1,R (what R its rotations need can't be told from how the hand turned)",
            (1.0, 0.1),
        ),
    ],
)
def test_translation_and_rotation_have_factors_of_their_own(
    tmp_path: Path,
    executed: np.ndarray,
    units: tuple[float, float],
    advice: str,
    right: tuple[float, float],
) -> None:
    variant(tmp_path, measured(*units))
    with pytest.raises(DemoFileError) as caught:
        find(tmp_path)
    assert advice.removeprefix("try ") in str(caught.value)
    assert "--clip" not in str(caught.value)
    (source,) = find(tmp_path, scale=right)
    np.testing.assert_allclose(simulators_actions(source), executed, atol=1e-3)


def test_rotations_that_were_rescaled_by_mistake_are_not_cut_off(tmp_path: Path) -> None:
    """One factor for both: the hand's path fits then, and says nothing of how it turned."""
    path = variant(tmp_path, measured(0.0115, 1))
    with pytest.raises(DemoFileError) as caught:
        find(path, scale=(86.96, 86.96))
    said = str(caught.value)
    assert "rotations of up to 17.6, though the arm executes 1 at most: rescale them with" in said
    assert "--action-scale 86.96,1 (whether" in said
    assert "--clip" not in said
    turns = r"a hand that turns 0\.0\d+ times as far as its actions say.*--action-scale 86\.96,1 "
    with pytest.raises(DemoFileError, match=turns):
        find(path, scale=(86.96, 86.96), clip=True)
    with pytest.raises(
        DemoFileError, match=r"actions of up to 1\.05,.* --action-scale 86\.96,1 "
    ) as c:
        find(path, scale=(91.0, 91.0))
    assert "--clip" not in str(c.value)
    assert find(path, scale=(86.96, 86.96), clip=True, trust_actions=True)
    path = variant(tmp_path, measured(0.05, 0.5))
    unseen = r"rotations of up to 2\.02 by --action-scale, which --clip would cut off: .* 20,2 if"
    with pytest.raises(DemoFileError, match=unseen):
        find(path, scale=(20.0, 20.0), clip=True)


def persons(folder: Path, translation: float, rotation: float) -> Path:
    """A person's demonstrations, as the simulator executed them, in other units."""
    path = folder / "lift.hdf5"
    shutil.copyfile(PEOPLES, path)
    with h5py.File(path, "r+") as file:
        executed = changed("actions", lambda actions: np.clip(actions, -1, 1))
        executed(file["data"])
        measured(translation, rotation)(file["data"])
    return path


def test_units_of_rotation_are_a_files_not_each_demonstrations(tmp_path: Path) -> None:
    """The third of three turns nothing, and can't be right where the others are wrong."""
    path = persons(tmp_path, 1, 20)
    said = (
        r"demo_1 has rotations of up to 3, .* --action-scale 1,R \(by how the hand turned, R lies "
    )
    said += r"between 0\.03 and 0\.3\).*; 2 of the 2 demonstrations whose hand clearly turns"
    with pytest.raises(DemoFileError, match=said):
        examine(path, Terms())
    with pytest.raises(
        DemoFileError, match=r"demo_1 has a hand that turns 0\.1 times .* 2 of the 2"
    ):
        examine(path, Terms(clip=True))
    assert len(examine(path, Terms(scale=(1.0, 0.05))).demos) == 3
    path = persons(tmp_path, 0.0115, 0.115)
    sentence = r"86\.96,8\.696 if its rotations are in radians, 86\.96,1 if they are as the arm"
    with pytest.raises(DemoFileError, match=sentence):
        examine(path, Terms())
    assert len(examine(path, Terms(scale=(86.96, 8.696))).demos) == 3


def test_a_persons_movements_that_the_simulator_cut_are_cut_with_clip() -> None:
    with pytest.raises(DemoFileError, match=r"of up to 3\.75, .*: --clip cuts them off, as the"):
        examine(PEOPLES, Terms())
    examined = examine(PEOPLES, Terms(clip=True))
    assert len(examined.demos) == len(examined.header.demos)
    assert examined.conventions.words() == "gripper -1 opens, 1 closes; movements cut off at 1"
    assert examined.told_by == "as its fingers move"


def absolute(data: Any) -> None:  # noqa: ANN401
    positions(data)
    changed("actions", lambda a: a + np.array([0, 0, 0, 3.1, 0, 0, 0]))(data)


def positions(data: Any) -> None:  # noqa: ANN401
    for demo in data.values():
        aims = np.roll(hand_positions(demo["states"][()]), -1, axis=0) + np.array([-0.6, 0, 0])
        aims[-1] = aims[-2]
        demo["actions"][:, :3] = aims


@pytest.mark.parametrize(
    ("edit", "terms", "sentence"),
    [
        (measured(0.05, 0.5), {}, r"moves (19|20|21|22) times as far .*--action-scale"),
        (positions, {}, r"hand's absolute positions"),
        (absolute, {}, r"hand's absolute positions"),
        (acted(-1), {}, r"doesn't move as its actions say.*--trust-actions"),
        (acted(0, lambda g: 0 * g - 1), {}, r"none of its 2 .* all of its actions are no-ops"),
        (acted(gripper=lambda g: 127.5 * (g + 1)), {}, r"gripper commands from 0 to 255"),
        (acted(gripper=lambda g: 0.5 + 0.2 * g), {}, r"neither open nor closed: .*--gripper"),
        (acted(gripper=lambda g: 0 * g), {}, r"fingers don't tell which opens: .*--gripper"),
        (changed("actions", lambda a: a * np.nan), {}, "demo_0/actions is not finite"),
        (changed("actions", lambda a: np.hstack([a, a[:, 6:]])), {}, r"actions \[77, 8\]"),
        (changed("states", lambda s: s[:, :-13]), {}, "states of 79 numbers, the scene of .* 92"),
        (lambda d: [d[n].pop("states") for n in d], {}, "demo_0 has no 'states'"),
        (lambda d: d.attrs.__setitem__("bddl_file_name", "m/mug.bddl"), {}, "names the task 'mug'"),
    ],
)
def test_what_cannot_be_told_is_refused(
    tmp_path: Path, edit: Edit, terms: dict[str, object], sentence: str
) -> None:
    path = variant(tmp_path, edit)
    with pytest.raises(DemoFileError, match=sentence) as caught:
        find(tmp_path, **terms)
    assert str(caught.value).startswith(str(path))


def test_an_option_says_what_the_file_does_not(tmp_path: Path, executed: np.ndarray) -> None:
    variant(tmp_path / "odd", acted(gripper=lambda g: 0.5 + 0.2 * g))
    (source,) = find(tmp_path / "odd", gripper="closed-is-1")
    assert "0 opens, 1 closes (as --gripper says)" in source.words()
    np.testing.assert_allclose(simulators_actions(source), executed)
    variant(tmp_path / "trusted", acted(-1))
    (source,) = find(tmp_path / "trusted", trust_actions=True)
    assert source.demos == ("demo_0", "demo_1")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (changed("states", lambda s: s[:-5], "demo_1"), r"demo_1 has actions \[75, 7\] and states"),
        (changed("actions", lambda a: np.where(a > 9, a, np.inf), "demo_1"), "is not finite"),
        (changed("states", lambda s: s[:, :-13], "demo_1"), "demo_1 has states of 79 numbers"),
        (changed("states", lambda s: s[::-1], "demo_1"), "demo_1 has a hand that doesn't move"),
        (lambda d: d["demo_1"].pop("states"), "demo_1 has no 'states'"),
        (
            changed("actions", lambda a: np.full(a.shape, b"x"), "demo_1"),
            "demo_1/actions can't be read",
        ),
        (lambda d: d.create_group("demo_1b"), "demo_1b has no 'actions'"),
    ],
)
def test_one_bad_demonstration_is_left_out_and_named(
    tmp_path: Path, edit: Edit, reason: str
) -> None:
    variant(tmp_path, edit)
    (source,) = find(tmp_path)
    left_out = source.examined.left_out
    assert "left out: 1" in source.words()
    assert len(left_out) == 1
    with pytest.raises(DemoFileError, match=reason):
        raise DemoFileError(next(iter(left_out.values())))
    assert set(source.demos) == {*source.examined.header.demos} - {*left_out}


@pytest.mark.parametrize(
    "edit",
    [
        changed("rewards", lambda r: 0 * r),
        changed("rewards", lambda r: r[:3]),
        changed("rewards", lambda r: r[:, None] * np.nan),
        changed("robot_states", lambda r: r[:, :4]),
        lambda d: [d[n].attrs.__setitem__("success", "False") for n in d],
    ],
)
def test_what_rewards_say_the_scene_knows_better(tmp_path: Path, edit: Edit) -> None:
    path = variant(tmp_path, edit)
    (source,) = find(tmp_path)
    assert source.demos == ("demo_0", "demo_1")
    assert not any(read_episode(path, demo).seen_to_succeed for demo in source.demos)


def test_our_own_files_say_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / RECORDED.name
    shutil.copyfile(RECORDED, path)
    assert find(path)[0].examined.told_by == "as ours are"
    for terms in ({"gripper": "open-is-1"}, {"clip": True}, {"scale": (1.0, 2.0)}):
        with pytest.raises(DemoFileError, match=r"of `demos collect`.*leave out --gripper, --clip"):
            find(path, **terms)
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["success"] = False
    (source,) = find(path)
    assert source.examined.left_out["demo_1"].endswith("its goal; --keep-failures takes it")
    assert find(path, keep_failures=True, trust_actions=True)[0].demos == ("demo_0", "demo_1")


def test_demonstrations_of_two_conventions_are_not_mixed(tmp_path: Path) -> None:
    variant(tmp_path, changed("actions", lambda a: a * [1, 1, 1, 1, 1, 1, -1], "demo_1"))
    with pytest.raises(DemoFileError, match="don't agree on what opens and what closes"):
        find(tmp_path)


def test_a_few_that_contradict_the_others_are_left_out(tmp_path: Path) -> None:
    def edit(data: Any) -> None:  # noqa: ANN401
        for number in range(2, 6):
            data.copy(f"demo_{number % 2}", f"demo_{number}")
        changed("actions", lambda a: a * [1, 1, 1, 1, 1, 1, -1], "demo_3")(data)

    variant(tmp_path, edit)
    (source,) = find(tmp_path)
    assert [*source.examined.left_out] == ["demo_3"]
    assert "against its commands" in source.examined.left_out["demo_3"]
    assert source.examined.conventions.gripper == "closed-is-1"


def test_every_bad_file_is_named_at_once_and_none_is_taken(tmp_path: Path) -> None:
    good = variant(tmp_path)
    (tmp_path / f"._{good.name}").write_bytes(b"resource fork")
    assert [source.file for source in find(tmp_path)] == [good]
    for name in ("cut.hdf5", "none.h5"):
        (tmp_path / name).write_bytes(good.read_bytes()[:60_000] if name[0] == "c" else b"")
    with pytest.raises(DemoFileError) as caught:
        find(tmp_path)
    said = str(caught.value)
    assert "cut.hdf5 can't be read as HDF5" in said
    assert said.endswith("; nor can none.h5 be used")
    assert len(said.splitlines()) == 1


def test_a_task_that_the_file_does_not_name_is_given(tmp_path: Path) -> None:
    path = variant(tmp_path, without_attributes, "low_dim.hdf5")
    with pytest.raises(DemoFileError, match=r"its own name names the task 'low_dim'.*--task"):
        find(tmp_path)
    task = CATALOG.find("libero_spatial", 0)
    (source,) = find_sources(path, CATALOG, Terms(), task)
    assert source.task == task
    other = CATALOG.find("libero_goal", 0)
    with pytest.raises(DemoFileError, match="the scene of libero_goal task 0 has"):
        find_sources(path, CATALOG, Terms(), other)
    variant(tmp_path, without_attributes, "second.hdf5")
    with pytest.raises(DemoFileError, match=r"--task is for one file, and .* holds 2"):
        find_sources(tmp_path, CATALOG, Terms(), task)


def test_a_perturbed_suite_is_taken_only_where_the_folder_says_so(tmp_path: Path) -> None:
    name = f"libero_spatial_swap/{TASK}_demo.hdf5"
    variant(tmp_path, without_attributes, name)
    (source,) = find(tmp_path)
    assert source.task.suite == "libero_spatial_swap"


def test_the_arm_in_a_state_is_where_the_simulator_saw_it() -> None:
    with h5py.File(RECORDED) as file:
        for demo in file["data"].values():
            states, seen = demo["states"][()], demo["robot_states"][()]
            np.testing.assert_allclose(finger_opening(states), seen[:, 0] - seen[:, 1], atol=1e-9)
            # robosuite sees the hand a substep earlier; the base stands where the table has it.
            offset = seen[:, 2:5] - hand_positions(states)
            np.testing.assert_allclose(offset, np.broadcast_to(offset[0], offset.shape), atol=2e-3)


def test_what_rendered_nothing_leaves_nothing_and_what_was_read_otherwise_stays(
    tmp_path: Path,
) -> None:
    """Without workers: what is there before the first, and after the last."""
    path, out = variant(tmp_path / "demos"), tmp_path / "dataset"
    settings = Settings(job="render", profile="fast")

    def converted(**terms: Any) -> None:  # noqa: ANN401
        kept = bool(terms.get("keep_failures"))
        asyncio.run(convert(find(path, **terms), settings, out, 0, keep_failures=kept))

    converted()
    assert not out.exists()
    out.mkdir()
    (out / "libero_spatial-00.safetensors").write_bytes(b"made before")
    conventions = find(path)[0].examined.conventions.model_dump(mode="json")
    made = {"file": str(path), "conventions": conventions, "keep_failures": False}
    (out / ORIGINS).write_text(json.dumps({"libero_spatial-00.safetensors": made}))
    converted()
    for terms, key in (({"keep_failures": True}, "keep_failures"), ({"clip": True}, "conventions")):
        with pytest.raises(DatasetError, match=f"made with another {key}: delete it"):
            converted(**terms)


def test_what_goes_wrong_at_the_first_frame_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed leaves a part half written."""
    out = tmp_path / "dataset"

    async def killed(
        settings: Settings, processes: int, next_order: Callable[[], RenderOrder], _: object
    ) -> None:
        partial = next_order().part.with_suffix(".partial")
        partial.parent.mkdir(parents=True)
        partial.touch()
        raise WorkerDiedError("its last words are above")

    monkeypatch.setattr("vlarl_jobs.demonstrations.converting.run_crew", killed)
    sources = find(variant(tmp_path / "demos"))
    for existed in (False, True):
        if existed:
            out.mkdir()
        with pytest.raises(WorkerDiedError, match="its last words"):
            asyncio.run(convert(sources, Settings(job="render", profile="fast"), out, 1))
        assert out.exists() == existed
        assert not existed or not [*out.iterdir()]
