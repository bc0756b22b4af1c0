"""The environment of packages that were carried to a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check.carried import NOTED, interpreter, loaders


def test_what_was_carried_is_found_without_the_callers_variables(tmp_path: Path) -> None:
    place = tmp_path / "kit"
    for module in NOTED:
        (place / module).mkdir(parents=True)
        (place / module / "__init__.py").write_text("carried = True\n", encoding="utf-8")
    python = interpreter(tmp_path / "environment", {"PYTHONPATH": f":{place}"})
    program = (
        "import libero, sys; from importlib.metadata import distribution as d; "
        "assert libero.carried; "
        "print(*[d(name).locate_file('') for name in sys.argv[1:]], sep='\\n')"
    )
    # Isolated, as a simulator's process is: nothing of the caller's variables counts.
    command = [str(python), "-I", "-c", program, *NOTED.values()]
    found = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    assert set(found.split()) == {str(place)}


def test_what_is_installed_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco-2.3.7.dist-info").mkdir()
    interpreter(tmp_path / "environment", {"PYTHONPATH": str(tmp_path)})
    assert [path.name for path in tmp_path.glob("*.dist-info")] == ["mujoco-2.3.7.dist-info"]


def test_without_anything_carried_there_is_no_new_environment(tmp_path: Path) -> None:
    assert interpreter(tmp_path / "environment", {}) == Path(sys.executable)
    assert not list(tmp_path.iterdir())


def test_carried_loaders_come_first(tmp_path: Path) -> None:
    assert loaders({"PYTHONPATH": str(tmp_path)}) == {}
    (tmp_path / "gl-loaders").mkdir()
    found = loaders({"PYTHONPATH": f"/nowhere:{tmp_path}", "LD_LIBRARY_PATH": "/before"})
    assert found["LD_LIBRARY_PATH"] == f"{tmp_path / 'gl-loaders'}:/before"
