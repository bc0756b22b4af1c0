"""What may be left out of a picture, against points thrown into the balls in question."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

pytestmark = pytest.mark.sim

Floats = npt.NDArray[np.float64]

SIZE = 256
EYE = np.array([1.0, -2.0, 1.5])


def looking_at(target: Floats) -> Floats:
    """Right, up and backwards of a camera at EYE: [3, 3], as columns."""
    back = (EYE - target) / np.linalg.norm(EYE - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


def pixels(points: Floats, axes: Floats, fovy: float) -> Floats:
    """Where points [n, 3] are in the picture, in pixels from its lower left corner: [n, 2].

    With a tangent of each angle, as a pinhole camera is explained at school; NaN behind it.
    """
    right, up, back = ((points - EYE) @ axes).T
    ahead = np.where(back < 0, -back, np.nan)
    reach = np.tan(np.radians(fovy / 2))
    return SIZE / 2 * (1 + np.stack([right, up], axis=1) / ahead[:, None] / reach)


def balls(count: int) -> tuple[Floats, Floats]:
    random = np.random.default_rng(3)
    return random.uniform(-4, 4, (count, 3)), random.uniform(0.01, 0.8, count)


def inside(center: Floats, radius: float) -> Floats:
    """Points in a ball, many of them on its surface: [n, 3]."""
    away = np.random.default_rng(4).normal(size=(300, 3))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    away[200:] *= np.linspace(0, 1, 100)[:, None]
    return center + radius * away


@pytest.mark.parametrize("corners", [(0, 0, 256, 256), (40, 200, 60, 230), (220, 0, 256, 40)])
def test_a_ball_with_a_point_in_the_window_is_shown(corners: tuple[int, int, int, int]) -> None:
    from vlarl_env.simulators.libero.visibility import Window, may_show, view_of

    window = Window(*corners)
    axes = looking_at(np.array([0.2, 0.1, 0.4]))
    centers, radii = balls(2000)
    shown = may_show(centers, radii, view_of(45.0, EYE, axes, SIZE), window)
    seen = np.zeros_like(shown)
    for number in range(len(centers)):
        x, y = pixels(inside(centers[number], radii[number]), axes, 45.0).T
        in_window = (x >= window.left) & (x <= window.right)
        seen[number] = (in_window & (y >= window.bottom) & (y <= window.top)).any()
    assert 10 < seen.sum() < 1000
    assert shown[seen].all()
    # Little else is drawn: balls near the window or, like the eye, in several of its sides.
    assert shown.sum() < 1.3 * seen.sum() + 25


def test_a_ball_is_hidden_only_where_no_ray_passes_the_table() -> None:
    from vlarl_env.simulators.libero.visibility import Window, may_show, may_stand_out, view_of

    table = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    axes = looking_at(np.zeros(3))
    view = view_of(60.0, EYE, axes, SIZE)
    centers, radii = balls(3000)
    radii /= 2
    for window in (Window(0, 0, SIZE, SIZE), Window(110, 110, 140, 140)):
        out = may_stand_out(centers, radii, view, window, table)
        near = may_show(centers, radii, view, window)
        hidden = np.flatnonzero(near & ~out)
        assert len(hidden) > 10
        for number in hidden:
            points = inside(centers[number], radii[number])
            x, y = pixels(points, axes, 60.0).T
            in_window = (x >= window.left) & (x <= window.right)
            in_window &= (y >= window.bottom) & (y <= window.top)
            # The ray from the eye to the point meets the table's plane within the table.
            share = EYE[2] / (EYE[2] - points[in_window, 2])
            met = EYE + share[:, None] * (points[in_window] - EYE)
            assert (share < 1).all()
            assert (share > 0).all()
            assert (np.abs(met[:, :2]) <= 1).all()
    # Under the table's middle; the same above it; and half under its edge.
    places = np.array([[0, 0, -0.4], [0, 0, 0.4], [1, 0, -0.4]])
    whole = Window(0, 0, SIZE, SIZE)
    out = may_stand_out(places, np.full(3, 0.3), view, whole, table)
    assert out.tolist() == [False, True, True]
    # The last one doesn't show in the middle of the picture, where there is only table.
    middle = Window(120, 120, 130, 130)
    out = may_stand_out(places, np.full(3, 0.3), view, middle, table)
    assert out.tolist() == [False, True, False]


def test_the_window_of_a_shape_holds_its_corners() -> None:
    from vlarl_env.simulators.libero.visibility import Window, view_of, window_of

    axes = looking_at(np.zeros(3))
    view = view_of(45.0, EYE, axes, SIZE)
    square = 0.2 * np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    window = window_of(square, view)
    assert window is not None
    x, y = pixels(square, axes, 45.0).T
    assert 1 <= x.min() - window.left < 2
    assert 1 <= y.min() - window.bottom < 2
    assert 1 <= window.right - x.max() < 2
    assert 1 <= window.top - y.max() < 2
    assert window_of(np.add(square, [0, 5, 5]), view) is None
    assert window_of(np.add(square, [2, -6, 5]), view) is None, "behind the camera"
    assert window_of(square * 100, view) == Window(0, 0, SIZE, SIZE)


def test_balls_enclose_meshes_and_bodies() -> None:
    import mujoco

    from vlarl_env.simulators.libero import visibility

    steps = 40
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, steps)] * 2), axis=-1).reshape(-1, 2)
    wavy = np.column_stack([grid, 0.2 * np.sin(9 * grid[:, 0])])
    corner = (np.arange(steps - 1)[:, None] * steps + np.arange(steps - 1)).reshape(-1)
    faces = [[corner, corner + 1, corner + steps + 1], [corner, corner + steps + 1, corner + steps]]
    # One more triangle, as long as the rest together.
    last = len(wavy) + np.arange(3)
    triangles = np.vstack([np.concatenate(faces, axis=1).T, last])
    vertices = np.vstack([wavy, [[-1, -1, 1], [1, 1, 1], [1, 1, 1.1]]])
    text, indices = (" ".join(map(str, a.reshape(-1))) for a in (vertices, triangles))
    xml = f"""
    <mujoco>
      <asset><mesh name="wavy" vertex="{text}" face="{indices}"/></asset>
      <worldbody>
        <geom type="mesh" mesh="wavy" pos="1 2 3" euler="20 30 40"/>
        <geom type="cylinder" size="0.3 0.5" pos="-3 0 0" euler="70 0 0"/>
      </worldbody>
    </mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    state = mujoco.MjData(model)
    mujoco.mj_forward(model, state)
    enclosing = visibility.Balls(model, np.array([0, 1]))
    centers, radii = enclosing.centers(state), enclosing.radii
    of_mesh = np.arange(len(radii)) < len(radii) - 1
    assert enclosing.geoms_of(of_mesh).tolist() == [True, False]
    assert enclosing.geoms_of(~of_mesh).tolist() == [False, True]
    assert radii[-1] == pytest.approx(np.hypot(np.hypot(0.3, 0.3), 0.5))
    np.testing.assert_allclose(centers[-1], [-3, 0, 0], atol=1e-9)

    # Points all over the surface, where MuJoCo puts it, are in one of the small balls.
    assert radii[of_mesh].max() < 0.06
    places, faces = visibility.surface(model, 0)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(faces) + 400)
    drawn = np.concatenate([np.arange(len(faces)), np.full(400, len(faces) - 1)])
    local = (weights[:, :, None] * places[faces[drawn]]).sum(axis=1)
    points = local @ state.geom_xmat[0].reshape(3, 3).T + state.geom_xpos[0]
    away = np.linalg.norm(points[:, None] - centers[of_mesh], axis=2) - radii[of_mesh]
    assert away.min(axis=1).max() < 1e-6
