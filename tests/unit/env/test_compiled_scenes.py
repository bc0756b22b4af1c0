"""Compiled scenes that are kept: the same to the bit, made anew where anything changed, bounded."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

if TYPE_CHECKING:
    import mujoco

pytestmark = pytest.mark.sim


def content(model: mujoco.MjModel) -> npt.NDArray[np.uint8]:
    import mujoco

    encoded = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, encoded)
    return encoded


def scene(folder: Path, shade: int = 0, *, name: str = "a") -> str:
    """A box with a picture on it."""
    picture = folder / f"{name}.png"
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(picture)
    return f"""
        <mujoco>
          <asset>
            <texture name="t" type="2d" file="{picture}"/>
            <material name="m" texture="t"/>
          </asset>
          <worldbody><geom name="{name}" type="box" size="1 1 1" material="m"/></worldbody>
        </mujoco>
    """


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really compiled."""
    import mujoco

    from vlarl_env.simulators.libero import compiled

    done: list[str] = []

    class Model:
        from_binary_path = mujoco.MjModel.from_binary_path

        @staticmethod
        def from_xml_string(xml: str) -> mujoco.MjModel:
            done.append(xml)
            return mujoco.MjModel.from_xml_string(xml)

    # Of this module alone: others ask whether something is a model.
    monkeypatch.setattr(compiled, "mujoco", SimpleNamespace(**vars(mujoco) | {"MjModel": Model}))
    return done


@pytest.mark.parametrize("profile", ["fast", "faithful"])
def test_a_kept_scene_of_liberos_is_the_compiled_one_to_the_bit(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    monkeypatch.setenv("VLARL_CACHE", str(tmp_path))
    task = TaskCatalog().find("reach", 0)
    contents = []
    for _ in range(2):
        built = Scene(task.bddl_file, "fast" if profile == "fast" else "faithful")
        contents.append(content(built.problem.sim.model._model))
        built.close()
    assert len(counted) == 1
    np.testing.assert_array_equal(*contents)


def test_what_changed_is_compiled_anew(tmp_path: Path, counted: list[str]) -> None:
    from vlarl_env.simulators.libero.compiled import compiled

    xml = scene(tmp_path)
    first = compiled(xml, tmp_path)
    assert len(counted) == 1
    assert compiled(xml, tmp_path).tex_rgb.tolist() == first.tex_rgb.tolist()
    assert len(counted) == 1
    assert scene(tmp_path, shade=9) == xml
    os.utime(tmp_path / "a.png", ns=(0, 5))
    assert compiled(xml, tmp_path).tex_rgb.max() == 9, "a picture of the same name"
    compiled(xml.replace("1 1 1", "2 1 1"), tmp_path)
    assert len(counted) == 3


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "scenes").glob("*.mjb"))


def test_a_damaged_one_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    from vlarl_env.simulators.libero.compiled import compiled

    monkeypatch.chdir(tmp_path)  # MuJoCo logs what it refuses into the working directory.
    xml = scene(tmp_path)
    first = content(compiled(xml, tmp_path))
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    # Of another build of MuJoCo, say: whole, and refused.
    header = b"\0" * 64 + whole[68:]
    refused = zlib.crc32(header).to_bytes(4, "little") + header
    for damaged in (b"", whole[:3], whole[:-1], bytes(len(whole)), bytes(flipped), refused):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(content(compiled(xml, tmp_path)), first)
        assert file.read_bytes() == whole, "it isn't mended"
    assert len(counted) == 7


def test_there_is_a_limit_and_what_was_long_unused_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    from vlarl_env.simulators.libero import compiled as module

    scenes = [scene(tmp_path, name=name) for name in "abc"]
    module.compiled(scenes[0], tmp_path)
    (first,) = kept(tmp_path)
    monkeypatch.setattr(module, "MOST_BYTES", int(2.5 * first.stat().st_size))
    # Whoever takes turns finds as many as there is room for.
    for _ in range(3):
        for xml in scenes:
            module.compiled(xml, tmp_path)
    assert counted == [scenes[number] for number in (0, 1, 2, 2, 2)]
    os.utime(first, (0, time.time() - module.UNUSED_SECONDS - 1))
    (tmp_path / "scenes" / "left.part").touch()
    module.compiled(scenes[2], tmp_path)
    assert len(kept(tmp_path)) == 2
    assert first not in kept(tmp_path)
    assert not list((tmp_path / "scenes").glob("*.part"))
    module.compiled(scenes[2], tmp_path)
    assert len(counted) == 6
    monkeypatch.setattr(module, "MOST_OF_DISK", 0.0)
    module.compiled(scene(tmp_path, name="d"), tmp_path)
    assert len(kept(tmp_path)) == 2, "a disk of which nothing may be taken"


def test_one_process_at_a_time_keeps_a_scene(tmp_path: Path) -> None:
    from vlarl_env.simulators.libero.compiled import compiled

    (tmp_path / "scenes").mkdir()
    with (tmp_path / "scenes" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert compiled(scene(tmp_path), tmp_path).ngeom == 1
        assert kept(tmp_path) == []
    compiled(scene(tmp_path), tmp_path)
    assert len(kept(tmp_path)) == 1


def test_without_a_place_scenes_are_compiled_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vlarl_env.simulators.libero.compiled import compiled

    (tmp_path / "scenes").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert compiled(scene(tmp_path), tmp_path).ngeom == 1
    assert "a compiled scene isn't kept: " in caplog.text
    xml = scene(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png"):
        compiled(xml, tmp_path)


def test_a_disk_that_fills_up_keeps_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vlarl_env.simulators.libero.compiled import compiled

    xml = scene(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert compiled(xml, tmp_path).ngeom == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "a compiled scene isn't kept: " in caplog.text
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == [".lock"]
