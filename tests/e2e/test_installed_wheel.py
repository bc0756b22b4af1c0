"""The wheel, installed as anybody would, used in a folder that holds modules named like ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, SMALL, Run
from vlarl.launch.supervisor import simulator_python

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

THEIRS = 'raise ImportError("the user\'s own was imported")\n'
"""What processes of ours must not run into."""


def site_packages(environment: Path) -> Path:
    (found,) = (environment / "lib").glob("python*/site-packages")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a folder in the sources."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("vlarl", "vlarl_cli", "vlarl_jobs", "services"):
        shutil.copytree(ROOT / name, sources / name)
    command = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(sources)], check=True)
    (built,) = out.glob("*.whl")
    return built


def installed(wheel: Path, environment: Path, packages: Path) -> Path:
    """A new environment with the wheel, on top of another one's packages; its `bin`.

    That other one's editable install isn't seen: nobody reads its .pth files.
    """
    venv.create(environment)
    (site_packages(environment) / "others.pth").write_text(f"{packages}\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(environment / "bin/python")]
    subprocess.run([*pip, "install", "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return environment / "bin"


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment like .venv, beside one like .venv-sim."""
    beside = tmp_path_factory.mktemp("installed")
    installed(wheel, beside / ".venv-sim", site_packages(simulator_python().parents[1]))
    return installed(wheel, beside / ".venv", site_packages(Path(sys.prefix)))


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("queue", "logging", "random", "vlarl", "vlarl_cli", "vlarl_policy", "benchmarks"):
        (folder / f"{name}.py").write_text(THEIRS)
    return folder


def call(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command there."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)


def test_a_run_of_two_ranks_beside_modules_of_the_users(
    programs: Path, users_folder: Path, checkpoint: Path
) -> None:
    """Simulators, vLLM's engine, torchrun's ranks: all of them are below `vlarl up`."""
    settings = SMALL | {
        "policy.checkpoint": str(checkpoint),
        "trainer.iterations": "1",
        "trainer.episodes_per_iteration": "2",
        "trainer.ranks": "2",
        "trainer.ppo.mini_batch": "6",
        "trainer.ppo.micro_batch": "3",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    config = str(ROOT / "configs/embedded.toml")
    up = (programs / "vlarl", "up", config, "--run-dir", "runs/one")
    done = call(users_folder, *up, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(users_folder / "runs/one", checkpoint)
    assert [line["iteration"] for line in run.iterations()] == [0]
    logs = "".join(log.read_text() for log in (run.run_dir / "logs").iterdir())
    assert "the user's own" not in logs + done.stdout + done.stderr


@pytest.mark.parametrize("start", [["vlarl"], ["python", "-m", "vlarl"]])
def test_a_command_that_changes_the_interpreter_beside_modules_of_the_users(
    programs: Path, users_folder: Path, start: list[str]
) -> None:
    (users_folder / "vlarl.py").unlink()  # python -m would run it
    program, *arguments = start
    reach = ("--suite", "reach", "--tasks", "9")
    done = call(users_folder, programs / program, *arguments, "demos", "expert", *reach)
    assert done.returncode == 1, done.stderr
    assert "reach" in done.stderr
    assert "the user's own" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rank_of_torchrun_beside_modules_of_the_users(programs: Path, users_folder: Path) -> None:
    (users_folder / "vlarl.py").unlink()
    torchrun = ("-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    train = ("-m", "vlarl", "train", "nowhere.toml", "--run-dir", "runs/one")
    done = call(users_folder, programs / "python", *torchrun, *train)
    assert "nowhere.toml" in done.stderr
    assert "the user's own" not in done.stderr
