"""Simplified copies of a scene's meshes for drawing, made once and kept in the cache folder.

LIBERO ships scans of up to 42,500 triangles for objects that cover a few dozen pixels of a frame,
and software rendering costs by the triangle. Only the graphics context gets the copies: the model
that the physics reads is as before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import fast_simplification
import mujoco
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save
from scipy.sparse import coo_matrix

from vlarl_env.simulators.libero.kept_files import put_in_place

TRIANGLE_CAP = 4000
"""Triangles that are kept of a mesh."""

_VERSION = f"1:{fast_simplification.__version__}:{TRIANGLE_CAP}"
"""Part of each copy's name: what is made otherwise must be named otherwise."""

_TOLERATED = 1.3
"""Times the cap up to which a copy is one. A mesh that is mostly borders, such as the robot's
pedestal, never gets there, and is out of shape when the library gives up: it stays as it is."""

_ALIKE = 0.6
"""Cosine between two triangles from which on they are shaded as one surface."""

_Number = TypeVar("_Number", np.float32, np.int32)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


class Mesh(NamedTuple):
    """A mesh as MuJoCo draws it: each triangle's corners have a place, a normal and a texel.

    Attributes:
        vertices: Metres [nv, 3].
        faces: Triangles, as indices of vertices [nf, 3].
        normals: Unit vectors [nn, 3].
        face_normals: Triangles, as indices of normals [nf, 3].
        texcoords: Places in the texture [nt, 2]; empty where nothing is textured.
        face_texcoords: Triangles, as indices of these [nf, 3], or of what isn't read.
    """

    vertices: Floats
    faces: Integers
    normals: Floats
    face_normals: Integers
    texcoords: Floats
    face_texcoords: Integers


@contextmanager
def simplified(model: mujoco.MjModel, cache: Path) -> Iterator[None]:
    """Has simplified meshes in the model while a graphics context is made from it.

    Args:
        model: Comes out as it went in.
        cache: Folder that keeps the copies.
    """
    folder = cache / "meshes"
    folder.mkdir(parents=True, exist_ok=True)
    has_texture = np.append(model.mat_texid, -1)[model.geom_matid] >= 0  # -1 is no material
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    textured = model.geom_dataid[is_mesh & has_texture]
    large = np.flatnonzero(model.mesh_facenum > TRIANGLE_CAP)
    originals = {int(mesh): mesh_of(model, mesh, textured=mesh in textured) for mesh in large}
    try:
        for number, original in originals.items():
            _put(model, number, _copy_of(original, folder))
        yield
    finally:
        for number, original in originals.items():
            _put(model, number, original)


def simplify(mesh: Mesh, triangles: int) -> Mesh:
    """The mesh with about so many triangles: quadric edge collapse (Garland and Heckbert 1997).

    Where the surface or its texture ends, every vertex stays in place. So nothing tears, and a new
    vertex and those that went into it are on one side of the texture's seams.
    """
    corners = np.hstack([mesh.vertices[mesh.faces.reshape(-1)], _texels(mesh)])
    # Many files have vertices of their own for each triangle: equal ones are one.
    welded, first, vertex = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    places = np.ascontiguousarray(welded[:, :3], dtype=np.float64)
    surface = vertex.reshape(-1, 3).astype(np.int32)
    *_, collapses = fast_simplification.simplify(
        places, surface, target_count=triangles, preserve_border=True, return_collapses=True
    )
    vertices, faces, became = fast_simplification.replay_simplification(places, surface, collapses)
    faces = faces.astype(np.int32)
    like = _nearest(places, vertices, became)
    if _is_round(mesh):
        normals, face_normals = mesh.normals[mesh.face_normals.reshape(-1)[first[like]]], faces
    else:
        normals, normal = np.unique(_normals(vertices, faces), axis=0, return_inverse=True)
        face_normals = normal.reshape(-1, 3).astype(np.int32)
    textured = len(mesh.texcoords) > 0
    return Mesh(
        vertices.astype(np.float32),
        faces,
        normals,
        face_normals,
        welded[like, 3:] if textured else mesh.texcoords,
        faces if textured else np.zeros_like(faces),
    )


def _texels(mesh: Mesh) -> Floats:
    """Each corner's place in the texture [3 nf, 2]; without one, equal places."""
    if not len(mesh.texcoords):
        return np.zeros((mesh.faces.size, 2), dtype=np.float32)
    return mesh.texcoords[mesh.face_texcoords.reshape(-1)]


def _is_round(mesh: Mesh) -> bool:
    """Whether the surface is shaded without edges: nearly every place has one normal."""
    places = mesh.vertices[mesh.faces.reshape(-1)]
    shaded = np.hstack([places, mesh.normals[mesh.face_normals.reshape(-1)]])
    return len(np.unique(shaded, axis=0)) < 1.01 * len(np.unique(places, axis=0))


def _nearest(
    old: npt.NDArray[np.float64],
    new: npt.NDArray[np.float64],
    became: npt.NDArray[np.integer],
) -> npt.NDArray[np.intp]:
    """Of the old vertices [n, 3] that became each new one, the nearest to it: [new]."""
    distance = np.linalg.norm(old - new[became], axis=1)
    order = np.lexsort((distance, became))
    _, first = np.unique(became[order], return_index=True)
    nearest: npt.NDArray[np.intp] = order[first]
    return nearest


def _normals(vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.integer]) -> Floats:
    """A normal for each corner: of the triangles around it that face alike, by area: [3 nf, 3]."""
    edges = np.diff(vertices[faces], axis=1)
    areas = np.repeat(np.cross(edges[:, 0], edges[:, 1]), 3, axis=0)
    facing = _unit(areas)
    _, place = np.unique(vertices[faces.reshape(-1)], axis=0, return_inverse=True)
    count = len(place)
    meets = coo_matrix((np.ones(count), (place, np.arange(count)))).tocsr()
    pairs = (meets.T @ meets).tocoo()
    joined = (facing[pairs.row] * facing[pairs.col]).sum(axis=1) > _ALIKE
    smooth = coo_matrix((joined.astype(float), (pairs.row, pairs.col)), shape=pairs.shape)
    return _unit(smooth @ areas).astype(np.float32)


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = vectors / np.maximum(lengths, 1e-12)
    return unit


def mesh_of(model: mujoco.MjModel, number: int, *, textured: bool) -> Mesh:
    """A copy of one of the model's meshes, with its texcoords where they are needed."""

    def rows(array: npt.NDArray[_Number], first: int, count: int) -> npt.NDArray[_Number]:
        return np.array(array[first : first + count])

    face = model.mesh_faceadr[number], model.mesh_facenum[number]
    return Mesh(
        rows(model.mesh_vert, model.mesh_vertadr[number], model.mesh_vertnum[number]),
        rows(model.mesh_face, *face),
        rows(model.mesh_normal, model.mesh_normaladr[number], model.mesh_normalnum[number]),
        rows(model.mesh_facenormal, *face),
        rows(
            model.mesh_texcoord,
            model.mesh_texcoordadr[number],
            model.mesh_texcoordnum[number] * textured,
        ),
        rows(model.mesh_facetexcoord, *face),
    )


def _put(model: mujoco.MjModel, number: int, mesh: Mesh) -> None:
    """Overwrites one of the model's meshes by one that isn't larger."""
    places = [
        (model.mesh_vert, model.mesh_vertadr, mesh.vertices),
        (model.mesh_normal, model.mesh_normaladr, mesh.normals),
        (model.mesh_texcoord, model.mesh_texcoordadr, mesh.texcoords),
        (model.mesh_face, model.mesh_faceadr, mesh.faces),
        (model.mesh_facenormal, model.mesh_faceadr, mesh.face_normals),
        (model.mesh_facetexcoord, model.mesh_faceadr, mesh.face_texcoords),
    ]
    for array, first, rows in places:
        if len(rows):
            array[first[number] : first[number] + len(rows)] = rows
    model.mesh_facenum[number] = len(mesh.faces)


def _copy_of(original: Mesh, folder: Path) -> Mesh:
    """The simplified mesh, from the folder if it is there."""
    key = hashlib.sha256(_VERSION.encode())
    for array in original:
        key.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    target = folder / f"{key.hexdigest()[:24]}.safetensors"
    if target.exists():
        return Mesh(**load_file(target))
    copy = simplify(original, TRIANGLE_CAP)
    fits = all(len(new) <= len(old) for new, old in zip(copy, original, strict=True))
    if not fits or len(copy.faces) > _TOLERATED * TRIANGLE_CAP:
        copy = original
    with put_in_place(target) as file:
        file.write(save({name: np.ascontiguousarray(a) for name, a in copy._asdict().items()}))
    return copy
