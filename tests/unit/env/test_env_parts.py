"""The env service's parts that need no simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vlarl.config import EnvConfig
from vlarl_env.devices import egl_devices
from vlarl_env.rollout import action_seed
from vlarl_env.simulators.libero.headless import cache_folder, headless_environment
from vlarl_env.simulators.libero.textures import TEXTURE_CAP, cap_textures
from vlarl_env.wire import HEADER, MAX_PAYLOAD, Frame, Kind, decode_header


@given(st.sampled_from(Kind), st.binary(max_size=300), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_frame_survives_the_wire(
    kind: Kind, payload: bytes, physics: float, render: float
) -> None:
    encoded = Frame(kind, payload, physics, render).encode()
    assert decode_header(encoded[: HEADER.size]) == (len(payload), kind, physics, render)
    assert encoded[HEADER.size :] == payload


def test_headers_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        decode_header(HEADER.pack(MAX_PAYLOAD + 1, Kind.ANSWER, 0.0, 0.0))
    with pytest.raises(ValueError, match="99 is not a valid Kind"):
        decode_header(HEADER.pack(0, 99, 0.0, 0.0))


def test_action_seeds_are_splitmix64() -> None:
    # The reference implementation's first outputs for seed 1234567, halved.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [action_seed(1234567, step) for step in range(3)] == [value >> 1 for value in expected]


@given(st.integers(0, 2**64 - 1))
def test_action_seeds_differ_and_fit_63_bits(seed: int) -> None:
    drawn = [action_seed(seed, step) for step in range(50)]
    assert len(set(drawn)) == 50
    assert all(0 <= value < 2**63 for value in drawn)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("1,7", [1]),
        ("GPU-5d0f,GPU-77aa", [0, 1]),
    ],
)
def test_simulators_draw_on_the_visible_gpus(
    tmp_path: Path, visible: str | None, expected: list[int]
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert egl_devices(environment, tmp_path) == expected


def test_without_gpus_software_draws(tmp_path: Path) -> None:
    assert egl_devices({}, tmp_path) == []
    environment = headless_environment({"VLARL_CACHE": str(tmp_path)}, egl_device=None)
    assert environment["MUJOCO_GL"] == "osmesa"
    assert environment["NUMBA_CACHE_DIR"] == str(tmp_path / "numba")


def test_a_gpu_is_named_for_egl_alone(tmp_path: Path) -> None:
    base = {"VLARL_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": "GPU-5d0f"}
    environment = headless_environment(base, egl_device=1)
    assert environment["MUJOCO_GL"] == "egl"
    assert environment["MUJOCO_EGL_DEVICE_ID"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_the_cache_goes_where_it_can_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    home = tmp_path / "home"
    assert cache_folder({"HOME": str(home)}) == home / ".cache" / "vlarl"
    fallback = cache_folder({"HOME": str(blocked)})
    assert fallback.is_dir()
    assert str(blocked) not in str(fallback)


def test_large_textures_are_scaled_once(tmp_path: Path) -> None:
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    ramp = np.linspace(0, 255, 2048 * 1024 * 3).reshape(1024, 2048, 3).astype(np.uint8)
    Image.fromarray(ramp).save(large)
    Image.fromarray(ramp[:32, :32]).save(small)
    xml = (
        f'<texture name="a" file="{large}" type="2d"/><texture file="{small}"/><mesh file="x.obj"/>'
    )
    capped = cap_textures(xml, tmp_path)
    assert f'file="{small}"' in capped
    assert '<mesh file="x.obj"/>' in capped
    (copy,) = (tmp_path / f"textures-{TEXTURE_CAP}").iterdir()
    assert f'name="a" file="{copy}" type="2d"' in capped
    with Image.open(copy) as image:
        assert image.size == (512, 256)
    written = copy.stat().st_mtime_ns
    assert cap_textures(xml, tmp_path) == capped
    assert copy.stat().st_mtime_ns == written


@pytest.mark.parametrize("crop", [(0, 0, 129, 64), (-1, 0, 8, 8), (100, 100, 29, 28), (0, 0, 0, 4)])
def test_a_crop_outside_the_frame_is_refused(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValidationError, match="must lie within the frame"):
        EnvConfig(render_size=128, crop=crop)
    assert EnvConfig(render_size=128, crop=(44, 20, 84, 84)).crop == (44, 20, 84, 84)
