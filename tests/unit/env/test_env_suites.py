"""Which tasks there are."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlarl.config import ConfigError, EnvConfig
from vlarl.config.libero import LIBERO_SUITES, PERTURBED_SUITES, base_suite, variants
from vlarl.launch.tasks import choose_tasks, described, suite_tasks
from vlarl_env.errors import UnknownTaskError
from vlarl_env.simulators.libero.bddl_check import check_bddl
from vlarl_env.simulators.libero.bddl_reader import read_bddl
from vlarl_env.simulators.libero.suites import SHIPPED_SUITES
from vlarl_env.simulators.registry import TaskCatalog

pytestmark = pytest.mark.sim

SCENE = (
    (SHIPPED_SUITES["reach"] / "reach_the_point_above_the_bowl.bddl")
    .read_text("utf-8")
    .replace("(:language reach the point above the bowl)", "(:language  push   the cube )")
)


ABILITIES = ("is_open", "is_close", "turn_on", "turn_off", "in_box")


@pytest.fixture(scope="module")
def catalog() -> TaskCatalog:
    return TaskCatalog()


@pytest.mark.parametrize(("suite", "limit"), LIBERO_SUITES.items())
def test_every_libero_task_is_whole(catalog: TaskCatalog, suite: str, limit: int) -> None:
    tasks = catalog.tasks(suite)
    assert len(tasks) == (90 if suite == "libero_90" else 10)
    for index, task in enumerate(tasks):
        assert task.index == index
        assert task.bddl_file.is_file()
        assert task.init_states == 50
        assert task.max_control_steps == limit
        assert task.init_state(49).ndim == 1


def test_variants_have_their_suites_limits(catalog: TaskCatalog) -> None:
    assert len(LIBERO_SUITES) == 5 + 4 * 4
    for suite in PERTURBED_SUITES:
        for variant in variants(suite):
            assert base_suite(variant) == suite
            assert LIBERO_SUITES[variant] == LIBERO_SUITES[suite]
            names = [task.name for task in catalog.tasks(variant)]
            assert names == [task.name for task in catalog.tasks(suite)]
    assert [base_suite(suite) for suite in ("libero_object", "libero_90", "reach")] == [
        "libero_object",
        "libero_90",
        "reach",
    ]


def test_variants_say_what_they_want(catalog: TaskCatalog) -> None:
    """Other words and other tasks are told from the scene's file, the rest as the suite's are."""
    plain = catalog.find("libero_goal", 0).instruction
    assert catalog.find("libero_goal_swap", 0).instruction == plain
    assert catalog.find("libero_goal_object", 0).instruction == plain
    assert catalog.find("libero_goal_lan", 0).instruction == "open the cabinet’s middle drawer"
    assert (
        catalog.find("libero_goal_task", 0).instruction == "open the bottom drawer of the cabinet"
    )
    for suite in PERTURBED_SUITES:
        for kind in ("lan", "task"):
            told = [task.instruction for task in catalog.tasks(f"{suite}_{kind}")]
            usual = [task.instruction for task in catalog.tasks(suite)]
            assert all(one != other for one, other in zip(told, usual, strict=True))


def test_tasks_can_be_listed_before_anything_runs() -> None:
    tasks = suite_tasks(EnvConfig(), "libero_object_task")
    assert [task.task.index for task in tasks] == list(range(10))
    assert {task.max_control_steps for task in tasks} == {280}
    assert tasks[0].instruction != ""
    chosen = choose_tasks(tasks, (7, 2, 7), episodes=50)
    assert [task.task.index for task in chosen] == [2, 7]
    assert described(chosen, tasks) == "tasks 2, 7 of libero_object_task's 10"
    assert described(tasks, tasks) == "all 10 tasks of libero_object_task"
    assert described(tasks[:1], tasks).endswith(f"_task's 10, {tasks[0].instruction}")
    assert len(choose_tasks(tasks, (), episodes=50)) == 10
    with pytest.raises(ConfigError, match="tasks 0 to 9, so there is no number 11"):
        choose_tasks(tasks, (1, 11), episodes=50)
    with pytest.raises(ConfigError, match="50 official initial states, fewer than 51"):
        choose_tasks(tasks, (), episodes=51)
    with pytest.raises(
        ConfigError,
        match=r"^unknown suite 'libero_11'; did you mean 'libero_10'\? There are .*libero_10_lan",
    ):
        suite_tasks(EnvConfig(), "libero_11")


def test_the_shipped_suite_has_states_all_over_its_region(catalog: TaskCatalog) -> None:
    (task,) = catalog.tasks("reach")
    assert task.init_states == 100
    states = np.stack([task.init_state(number) for number in range(100)])
    moving = np.flatnonzero(states.std(axis=0) > 1e-9)
    assert len(moving) == 2, "only the bowl's x and y differ"
    spread = states[:, moving].max(axis=0) - states[:, moving].min(axis=0)
    assert (spread > (0.06, 0.08)).all()
    assert (np.abs(states[:, moving]) < (0.04, 0.05)).all()


def test_tasks_stand_in_the_benchmarks_order(catalog: TaskCatalog) -> None:
    spatial = catalog.find("libero_spatial", 0)
    assert spatial.instruction == (
        "pick up the black bowl between the plate and the ramekin and place it on the plate"
    )
    assert catalog.find("libero_goal", 0).instruction == "open the middle drawer of the cabinet"
    assert catalog.find("libero_10", 9).instruction == (
        "put the yellow and white mug in the microwave and close it"
    )


def test_what_does_not_exist_is_named(catalog: TaskCatalog) -> None:
    with pytest.raises(
        UnknownTaskError,
        match=r"unknown suite 'libero_11'; did you mean 'libero_10'\? There are .*libero_10.*reach",
    ):
        catalog.find("libero_11", 0)
    with pytest.raises(UnknownTaskError, match="tasks 0 to 9, so there is no number 10"):
        catalog.find("libero_goal", 10)
    with pytest.raises(UnknownTaskError, match="50 official initial states, so there is no"):
        catalog.find("libero_goal", 0).init_state(50)


def test_a_folder_of_scenes_makes_a_suite(tmp_path: Path) -> None:
    for name in ("b_second", "a_first"):
        (tmp_path / f"{name}.bddl").write_text(SCENE)
    (tmp_path / "suite.toml").write_text("max_control_steps = 45\n")
    tasks = TaskCatalog({"cubes": tmp_path}).tasks("cubes")
    assert [task.name for task in tasks] == ["a_first", "b_second"]
    assert tasks[0].instruction == "push the cube"
    assert tasks[0].max_control_steps == 45
    assert tasks[0].init_states == 0


def test_broken_suites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \.bddl file"):
        TaskCatalog({"empty": tmp_path})
    with pytest.raises(ConfigError, match=r"suite 'gone': .*/none: No such file"):
        TaskCatalog({"gone": tmp_path / "none"})
    (tmp_path / "a.bddl").write_text("(define (problem x))")
    with pytest.raises(ConfigError, match=r"a\.bddl:1: no \(:language"):
        TaskCatalog({"silent": tmp_path})
    (tmp_path / "a.bddl").write_text(SCENE)
    (tmp_path / "suite.toml").write_text("max_steps = 4\n")
    with pytest.raises(ConfigError, match="max_control_steps"):
        TaskCatalog({"typo": tmp_path})
    with pytest.raises(ConfigError, match="LIBERO's own"):
        TaskCatalog({"libero_10": tmp_path})


def draw_nothing_of(scene: Path, **arrays: object) -> None:
    np.savez(scene.with_suffix(".init.npz"), **arrays)


def renamed_pickle(scene: Path) -> None:
    """LIBERO's own format, torch's archive of pickles."""
    with zipfile.ZipFile(scene.with_suffix(".init.npz"), "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")


def cut_states(scene: Path) -> None:
    draw_nothing_of(scene, states=np.zeros((50, 79)))
    file = scene.with_suffix(".init.npz")
    file.write_bytes(file.read_bytes()[:5000])


def damaged_states(scene: Path) -> None:
    file = scene.with_suffix(".init.npz")
    np.savez_compressed(file, states=np.random.default_rng(0).normal(size=(50, 79)))
    content = bytearray(file.read_bytes())
    content[5000:5100] = bytes(100)
    file.write_bytes(content)


def link_to_nowhere(scene: Path) -> None:
    scene.with_suffix(".init.npz").symlink_to(scene.with_name("gone"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
ODD_STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (renamed_pickle, r"states is not a file in the archive.*draw them again, or remo"),
    "cut": (cut_states, "not a zip file"),
    "damaged": (damaged_states, "draw them again"),
    "empty": (lambda scene: scene.with_suffix(".init.npz").touch(), "draw them again"),
    "a pointer": (
        lambda scene: scene.with_suffix(".init.npz").write_text(POINTER),
        "is a Git LFS pointer.*git lfs pull",
    ),
    "text": (lambda scene: scene.with_suffix(".init.npz").write_text("0 1 2"), "draw them again"),
    "one state": (
        lambda scene: draw_nothing_of(scene, states=np.zeros(79)),
        r"`states` of shape \[79\] aren't finite rows",
    ),
    "objects": (
        lambda scene: draw_nothing_of(scene, states=np.array([None])),
        "Object arrays cannot be loaded",
    ),
    "NaN": (
        lambda scene: draw_nothing_of(scene, states=np.full((2, 79), np.nan)),
        r"`states` of shape \[2, 79\] aren't finite rows",
    ),
    "a folder": (
        lambda scene: scene.with_suffix(".init.npz").mkdir(),
        r"can't be read \(Is a directory\)",
    ),
    "a link to nowhere": (link_to_nowhere, r"can't be read \(No such file or directory\)"),
}


@pytest.mark.parametrize("kind", ODD_STATES)
def test_states_that_are_none_are_refused_with_their_file(tmp_path: Path, kind: str) -> None:
    """When the suite is loaded, not at the first episode of each simulator."""
    make, message = ODD_STATES[kind]
    scene = tmp_path / "push.bddl"
    scene.write_text(SCENE, "utf-8")
    make(scene)
    with pytest.raises(ConfigError, match=message) as refused:
        TaskCatalog({"mine": tmp_path})
    assert str(refused.value).startswith(f"{tmp_path / 'push.init.npz'}")


def test_states_of_another_scene_name_both_files(tmp_path: Path) -> None:
    scene = tmp_path / "push.bddl"
    scene.write_text(SCENE, "utf-8")
    draw_nothing_of(scene, states=np.zeros((3, 79), np.float32))
    (task,) = TaskCatalog({"mine": tmp_path}).tasks("mine")
    assert task.init_states == 3
    assert task.init_state(2, length=79).dtype == np.float64
    with pytest.raises(UnknownTaskError) as refused:
        task.init_state(2, length=92)
    assert str(refused.value) == (
        f"{tmp_path / 'push.init.npz'}: its states have 79 values, those of the scene {scene} have "
        "92: it was edited after they were drawn; draw them again with `python -m "
        f"vlarl_env.simulators.libero.init_states {tmp_path}`"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_control_steps = 45 # für den Würfel\n".encode("latin-1"), "not UTF-8.*as UTF-8"),
        (b"max_control_steps = true\n", r"max_control_steps \(a positive integer\)"),
        (b"max_control_steps = 4.5\n", r"max_control_steps \(a positive integer\)"),
        (b"max_control_steps\n", "not TOML"),
    ],
)
def test_a_suites_settings_are_refused_with_their_file(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "push.bddl").write_text(SCENE, "utf-8")
    (tmp_path / "suite.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/suite.toml: {message}"):
        TaskCatalog({"mine": tmp_path})


def test_a_byte_order_mark_in_a_suites_settings_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "push.bddl").write_text(SCENE, "utf-8")
    (tmp_path / "suite.toml").write_text("max_control_steps = 45\n", "utf-8-sig")
    (task,) = TaskCatalog({"mine": tmp_path}).tasks("mine")
    assert task.max_control_steps == 45


@pytest.mark.parametrize("name", ["suite.toml", "b.bddl"])
def test_a_link_to_nowhere_is_not_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "push.bddl").write_text(SCENE, "utf-8")
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=rf"{name}: can't be read \(No such file or directory\)"):
        TaskCatalog({"mine": tmp_path})


def test_a_broken_scene_is_refused_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "lift.bddl"
    file.write_text(SCENE.replace("- akita_black_bowl", "- akita_black_bol"), "utf-8")
    with pytest.raises(ConfigError) as refused:
        suite_tasks(EnvConfig(bddl_directories={"mine": tmp_path}), "mine")
    assert str(refused.value) == (
        f"{file}:15: unknown kind of object akita_black_bol; did you mean akita_black_bowl?"
    )


def test_liberos_own_files_are_read_as_libero_reads_them(catalog: TaskCatalog) -> None:
    """All tasks pass the check and give LIBERO's own scanner's tokens."""
    from bddl.parsing import scan_tokens

    for suite in LIBERO_SUITES:
        for task in catalog.tasks(suite):
            check_bddl(task.bddl_file)
            assert read_bddl(task.bddl_file).tokens() == scan_tokens(filename=str(task.bddl_file))


def test_the_table_of_kinds_is_liberos_registry() -> None:
    """What isn't in it has no files in the package."""
    from libero.libero.envs import TASK_MAPPING
    from libero.libero.envs.objects import get_object_dict, get_object_fn
    from libero.libero.envs.predicates import VALIDATE_PREDICATE_FN_DICT

    import vlarl_env.simulators.libero.scene  # noqa: F401
    from vlarl_env.simulators.libero import bddl_check, predicates

    predicates.register()
    table = bddl_check._kinds()
    assert table.keys() <= get_object_dict().keys()
    for kind in get_object_dict():
        if kind not in table:
            with pytest.raises(FileNotFoundError):
                get_object_fn(kind)(name="thing")
            continue
        made = get_object_fn(kind)(name="thing")
        abilities = {name for name in ABILITIES if hasattr(made, name)}
        assert set(table[kind].can) == abilities, kind
        tree = made.__dict__.get("worldbody")
        sites = set() if tree is None else {site.get("name") for site in tree.iter("site")}
        assert {f"thing_{site}" for site in table[kind].sites} <= sites, kind
    assert bddl_check.WORKSPACES.keys() == TASK_MAPPING.keys()
    assert bddl_check._GOALS.keys() == VALIDATE_PREDICATE_FN_DICT.keys()


def test_imports_leave_a_fresh_home_alone(tmp_path: Path) -> None:
    """No prompt, nothing written outside the cache folder, though the home can't be written."""
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir(mode=0o500)
    program = "from vlarl_env.simulators.libero import scene; print(scene.PLACEMENT_TRIES)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "VLARL_CACHE": str(cache)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "50\n"
    assert "robosuite" not in done.stderr
    assert list(home.iterdir()) == []
    assert {entry.name for entry in tmp_path.iterdir()} == {"home", "cache"}
