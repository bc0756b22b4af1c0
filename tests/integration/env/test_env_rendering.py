"""Pictures of real scenes: what is left out and what is simplified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

if TYPE_CHECKING:
    from vlarl_env.simulators.libero.rendering import Renderer
    from vlarl_env.simulators.libero.scene import Profile, Scene
    from vlarl_env.simulators.libero.visibility import Window

pytestmark = [pytest.mark.sim, pytest.mark.slow]

SIZE = 128
MIRRORLESS, WITH_A_STOVE = ("libero_object", 0), ("libero_10", 2)


def opened(suite: str, index: int, profile: Profile) -> Scene:
    from vlarl_env.simulators.libero.scene import Scene
    from vlarl_env.simulators.registry import TaskCatalog

    task = TaskCatalog().find(suite, index)
    scene = Scene(task.bddl_file, profile)
    scene.draw_placement(0)
    scene.set_state(task.init_state(0))
    return scene


def wander(scene: Scene, steps: int) -> Iterator[None]:
    """Moves the arm about, far enough that it enters and leaves what cameras see."""
    draw = np.random.default_rng(2)
    for _ in range(steps):
        action = np.sign(draw.normal(size=7))
        for _ in range(6):
            scene.control_step(action)
        yield


def plain(scene: Scene, camera: str) -> npt.NDArray[np.uint8]:
    """robosuite's own picture, of everything."""
    with scene._as_observed():
        drawn: npt.NDArray[np.uint8] = scene.problem.sim.render(SIZE, SIZE, camera_name=camera)
    return drawn[::-1, ::-1]


@contextmanager
def recorded(renderer: Renderer) -> Iterator[list[tuple[int, int]]]:
    """What is drawn meanwhile: a window's pixels and the share of the scene's triangles, in %."""
    seen: list[tuple[int, int]] = []
    draw = renderer._draw

    def record(
        camera: int, size: int, window: Window, shown: npt.NDArray[np.bool_], **mirrors: bool
    ) -> npt.NDArray[np.uint8]:
        pixels = draw(camera, size, window, shown, **mirrors)
        share = 100 * (renderer._triangles @ shown) // renderer._triangles.sum()
        seen.append((pixels.shape[0] * pixels.shape[1], int(share)))
        return pixels

    renderer._draw = record  # type: ignore[method-assign]
    yield seen
    renderer._draw = draw  # type: ignore[method-assign]


@pytest.mark.parametrize(("suite", "index"), [MIRRORLESS, WITH_A_STOVE, ("libero_90", 20)])
def test_what_is_left_out_isnt_missed(suite: str, index: int) -> None:
    """Every camera's pixels, while the arm moves, are those of the whole scene."""
    scene = opened(suite, index, "faithful")
    groups = np.array(scene.problem.sim.model.geom_group)
    with recorded(scene._renderer) as drawn:
        frames = 0
        for _ in wander(scene, 2):
            for camera in scene.cameras:
                ours = scene.render(camera, SIZE)
                np.testing.assert_array_equal(ours, plain(scene, camera), err_msg=camera)
                frames += 1
    of_whole = [share for pixels, share in drawn if pixels == SIZE**2]
    assert len(of_whole) == frames
    assert np.mean(of_whole) < 90
    assert min(of_whole) < 75
    np.testing.assert_array_equal(scene.problem.sim.model.geom_group, groups)
    in_mirrors = [share for pixels, share in drawn if pixels < SIZE**2]
    if (suite, index) == MIRRORLESS:
        assert not in_mirrors
    else:
        assert len(in_mirrors) >= 3, "no mirror was in view"
        assert np.median(in_mirrors) < 60
    scene.close()


def test_mirrors_show_the_arm() -> None:
    """The reflections compared above are there: without them, pixels differ."""
    import mujoco

    scene = opened(*WITH_A_STOVE, "faithful")
    ours = scene.render("agentview", SIZE).astype(int)
    flags = scene.problem.sim._render_context_offscreen.scn.flags
    assert flags[mujoco.mjtRndFlag.mjRND_REFLECTION]
    flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    assert (np.abs(ours - plain(scene, "agentview")).max(axis=-1) > 8).sum() > 20
    scene.close()


def test_simplified_meshes_are_for_the_eyes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and what it does are the same to the last bit; the pictures differ a little."""
    from vlarl_env.simulators.libero import meshes

    monkeypatch.setenv("VLARL_CACHE", str(tmp_path))
    models, states, frames, larger = {}, {}, {}, {}
    for cap in (meshes.TRIANGLE_CAP, 10**9):
        monkeypatch.setattr(meshes, "TRIANGLE_CAP", cap)
        scene = opened("libero_spatial", 0, "fast")
        model = scene.problem.sim.model._model
        models[cap] = {
            name: np.array(value)
            for name in dir(model)
            if isinstance(value := getattr(model, name), np.ndarray)
        }
        steps = wander(scene, 3)
        states[cap] = [scene.state() for _ in steps]
        frames[cap] = scene.render("agentview", SIZE).astype(int)
        # Larger than the buffer that robosuite makes at first: it makes another.
        larger[cap] = scene.render("agentview", 600).astype(int)
        scene.close()
        del scene
    (simple, whole) = models.values()
    assert {"body_mass", "body_inertia", "body_ipos", "geom_pos", "mesh_face"} < simple.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(simple[name], value, err_msg=name)
    np.testing.assert_array_equal(*states.values())
    for ours, original in (frames.values(), larger.values()):
        assert 0 < np.abs(ours - original).mean() < 1.5
        assert (np.abs(ours - original).max(axis=-1) > 8).mean() < 0.04
    assert len(list((tmp_path / "meshes").iterdir())) > 5
