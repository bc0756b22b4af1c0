"""Simplified meshes, against surfaces whose shape and texture are formulas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

if TYPE_CHECKING:
    from vlarl_env.simulators.libero.meshes import Mesh

pytestmark = pytest.mark.sim

ROWS, COLUMNS = 40, 80
TRIANGLES = 2 * ROWS * COLUMNS


def tube() -> Mesh:
    """An open tube of radius 1 along z, its texture wrapped around it once: u is the angle.

    As in LIBERO's files, each triangle has vertices, normals and texels of its own.
    """
    from vlarl_env.simulators.libero.meshes import Mesh

    v, u = np.meshgrid(np.linspace(0, 1, ROWS + 1), np.linspace(0, 1, COLUMNS + 1), indexing="ij")
    angle = 2 * np.pi * (u % 1)  # so that the seam's two sides are at the same place
    grid = np.stack([np.cos(angle), np.sin(angle), 3 * v, u, v], axis=-1).astype(np.float32)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    corners = np.concatenate(
        [np.stack(corner, axis=2).reshape(-1, 3, 5) for corner in ((a, b, c), (a, c, d))]
    ).reshape(-1, 5)
    outwards = np.column_stack([corners[:, :2], np.zeros(len(corners), dtype=np.float32)])
    index = np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
    return Mesh(corners[:, :3], index, outwards, index, corners[:, 3:], index)


def area(mesh: Mesh) -> float:
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(float), 1, 0)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def test_shape_shading_and_texture_are_kept() -> None:
    from vlarl_env.simulators.libero.meshes import simplify

    original = tube()
    copy = simplify(original, 1000)
    assert len(original.faces) == TRIANGLES
    assert 500 < len(copy.faces) <= 1100
    assert area(copy) == pytest.approx(area(original), rel=0.01)
    corners = copy.vertices[copy.faces].astype(float)
    assert np.linalg.norm(corners[..., :2], axis=-1) == pytest.approx(1, abs=0.02)

    # Outwards, as the tube's own normals.
    radial = corners * [1, 1, 0]
    normals = copy.normals[copy.face_normals]
    assert ((radial * normals).sum(axis=-1) > 0.97).all()

    # The texel of each corner is that of its place: around the tube, and along it.
    texels = copy.texcoords[copy.face_texcoords]
    turned = np.arctan2(corners[..., 1], corners[..., 0]) / (2 * np.pi) - texels[..., 0]
    assert np.abs(turned - np.round(turned)).max() < 0.02
    assert texels[..., 1] == pytest.approx(corners[..., 2] / 3, abs=0.03)
    # And no triangle has the whole texture squeezed into it where the seam is.
    assert np.ptp(texels[..., 0], axis=1).max() < 0.5


def test_nothing_tears_and_nothing_shrinks() -> None:
    """The rims stay, and both sides of the texture's seam have the same vertices."""
    from vlarl_env.simulators.libero.meshes import simplify

    copy = simplify(tube(), 1000)
    places, place = np.unique(copy.vertices, axis=0, return_inverse=True)
    faces = place[copy.faces]
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    open_edges, uses = np.unique(edges, axis=0, return_counts=True)
    height = places[open_edges[uses == 1]][..., 2]
    assert np.isin(height, [0, 3]).all(), "a hole between the rims"
    assert (uses == 1).sum() == 2 * COLUMNS


def test_an_untextured_mesh_gets_no_texture() -> None:
    from vlarl_env.simulators.libero.meshes import simplify

    bare = tube()._replace(texcoords=np.zeros((0, 2), dtype=np.float32))
    copy = simplify(bare, 1000)
    assert len(copy.faces) <= 1100
    assert copy.texcoords.size == 0
    assert not copy.face_texcoords.any()


SCENE = """
<mujoco>
  <asset>
    <mesh name="large" file="large.obj"/>
    <mesh name="small" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
  </asset>
  <worldbody>
    <body><freejoint/><geom type="mesh" mesh="large"/></body>
    <body pos="5 0 0"><freejoint/><geom type="mesh" mesh="small"/></body>
  </worldbody>
</mujoco>
"""


def ball(rows: int, columns: int) -> bytes:
    """A closed surface as a Wavefront file."""
    lines = ["v 0 0 1", "v 0 0 -1"]
    for polar in np.linspace(0, np.pi, rows + 2)[1:-1]:
        for angle in np.linspace(0, 2 * np.pi, columns, endpoint=False):
            x, y, z = np.sin(polar) * np.cos(angle), np.sin(polar) * np.sin(angle), np.cos(polar)
            lines.append(f"v {x} {y} {z}")

    def number(row: int, column: int) -> int:
        return 3 + row * columns + column % columns

    for k in range(columns):
        lines.append(f"f 1 {number(0, k)} {number(0, k + 1)}")
        lines.append(f"f 2 {number(rows - 1, k + 1)} {number(rows - 1, k)}")
        for row in range(rows - 1):
            a, b = number(row, k), number(row, k + 1)
            c, d = number(row + 1, k + 1), number(row + 1, k)
            lines += [f"f {a} {d} {c}", f"f {a} {c} {b}"]
    return "\n".join(lines).encode()


def surfaces(model: object) -> dict[str, npt.NDArray[np.generic]]:
    return {
        name: np.array(value)
        for name in dir(model)
        if isinstance(value := getattr(model, name), np.ndarray)
    }


def test_the_model_has_the_copies_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mujoco

    from vlarl_env.simulators.libero import meshes

    model = mujoco.MjModel.from_xml_string(SCENE, {"large.obj": ball(50, 60)})
    before = surfaces(model)
    assert len(before) > 200
    assert list(model.mesh_facenum) == [6000, 4]

    def fail_meanwhile() -> None:
        with meshes.simplified(model, tmp_path):
            assert 3000 < model.mesh_facenum[0] <= meshes.TRIANGLE_CAP
            assert model.mesh_facenum[1] == 4
            raise RuntimeError("meanwhile")

    with pytest.raises(RuntimeError, match="meanwhile"):
        fail_meanwhile()
    for name, value in surfaces(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)

    # The copy is there now: nothing is computed any more, and the model looks the same.
    (kept,) = (tmp_path / "meshes").iterdir()
    assert kept.suffix == ".safetensors"
    monkeypatch.setattr(meshes, "simplify", None)
    with meshes.simplified(model, tmp_path):
        assert 3000 < model.mesh_facenum[0] <= meshes.TRIANGLE_CAP
        first = model.mesh_face[: model.mesh_facenum[0]]
        assert len(np.unique(first)) == first.max() + 1 < 2100


def test_other_content_is_another_copy(tmp_path: Path) -> None:
    import mujoco

    from vlarl_env.simulators.libero import meshes

    for columns in (60, 61):
        model = mujoco.MjModel.from_xml_string(SCENE, {"large.obj": ball(50, columns)})
        with meshes.simplified(model, tmp_path):
            pass
    assert len(list((tmp_path / "meshes").iterdir())) == 2


def test_a_mesh_of_borders_stays_as_it_is(tmp_path: Path) -> None:
    """Apart from each other, triangles have nothing but borders."""
    import mujoco

    from vlarl_env.simulators.libero import meshes

    corners = np.random.default_rng(0).uniform(-1, 1, (6000, 3, 3)).round(4).reshape(-1, 3)
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    lines += [f"f {k} {k + 1} {k + 2}" for k in range(1, len(corners), 3)]
    model = mujoco.MjModel.from_xml_string(SCENE, {"large.obj": "\n".join(lines).encode()})
    before = surfaces(model)
    with meshes.simplified(model, tmp_path):
        for name, value in surfaces(model).items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
