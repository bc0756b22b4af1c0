"""What a camera can see: a map from world to picture, and balls that enclose surfaces."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_MARGIN = 2
"""Pixels around a window that count as in it: MuJoCo renders in single precision."""

_CLOSE = 1e-3
"""Metres behind a cover that don't count as hidden, for the same reason."""

_PIECE = 0.03
"""Meshes are cut into pieces of about this length in metres; each gets a ball."""

_WHOLE = 2000
"""Triangles up to which a mesh isn't cut: it costs little to draw."""


class Window(NamedTuple):
    """A part of a picture, in pixels from its lower left corner; `right` and `top` lie outside."""

    left: int
    bottom: int
    right: int
    top: int


class View(NamedTuple):
    """A camera and its square picture.

    Attributes:
        matrix: Takes x, y, z, 1 to `u`, `v` and depth `w`; in view are -w <= u, v <= w. [3, 4]
        eye: The camera's position in metres [3].
        size: The picture's width and height in pixels.
    """

    matrix: Floats
    eye: Floats
    size: int

    def edges(self, window: Window) -> tuple[float, float, float, float]:
        """A window's left, bottom, right and top as u / w and v / w, with some room."""
        left, bottom, right, top = (2 * edge / self.size - 1 for edge in window)
        room = 2 * _MARGIN / self.size
        return left - room, bottom - room, right + room, top + room


def view_of(fovy: float, eye: Floats, axes: Floats, size: int) -> View:
    """What a camera sees.

    Args:
        fovy: Vertical angle of view in degrees.
        eye: The camera's position in metres [3].
        axes: Its right, upwards and backwards directions, as columns [3, 3].
        size: The picture's width and height in pixels.
    """
    focal = 1 / np.tan(np.radians(fovy) / 2)
    rotation = np.array([focal, focal, -1.0])[:, None] * axes.T
    return View(np.column_stack([rotation, -rotation @ eye]), eye, size)


def may_show(centers: Floats, radii: Floats, view: View, window: Window) -> Bools:
    """Whether balls may reach into a window of a picture: [n].

    Args:
        centers: Of the balls, in metres [n, 3].
        radii: In metres [n].
        view: The picture.
        window: The part of it that matters.
    """
    left, bottom, right, top = view.edges(window)
    u, v, w = view.matrix
    # Planes through the camera and the window's edges, and the one that the camera stands in.
    sides = np.stack([u - left * w, right * w - u, v - bottom * w, top * w - v, w])
    sides /= np.linalg.norm(sides[:, :3], axis=1, keepdims=True)
    inwards = sides[:, :3] @ centers.T + sides[:, 3:]
    shown: Bools = (inwards > -radii).all(axis=0)
    return shown


def may_stand_out(
    centers: Floats, radii: Floats, view: View, window: Window, cover: Floats
) -> Bools:
    """Whether a window of a picture may show balls in spite of a rectangle that covers them: [n].

    Args:
        centers: Of the balls, in metres [n, 3].
        radii: In metres [n].
        view: The picture, taken from before the rectangle.
        window: The part of it that matters.
        cover: The rectangle's corners, counter-clockwise as seen from its front, in metres [4, 3].
    """
    left, bottom, right, top = view.edges(window)
    corners = np.array([[left, left, right, right], [bottom, top, bottom, top], [1, 1, 1, 1]])
    rays = np.linalg.solve(view.matrix[:, :3], corners)
    # Planes through the camera and the rectangle's edges, where not all of the window is inside.
    sides = np.cross(np.roll(cover, -1, axis=0) - view.eye, cover - view.eye)
    sides = sides[(sides @ rays < 0).any(axis=1)]
    behind = -np.cross(cover[1] - cover[0], cover[2] - cover[0])
    normals = np.vstack([behind, sides])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    through = np.vstack([cover[:1], np.tile(view.eye, (len(sides), 1))])
    inwards = normals @ centers.T - (normals * through).sum(axis=1, keepdims=True)
    shown: Bools = (inwards < radii + _CLOSE).any(axis=0)
    return shown


def window_of(corners: Floats, view: View) -> Window | None:
    """The part of a picture that a convex shape with these corners [n, 3] covers, or None."""
    size = view.size
    u, v, w = view.matrix[:, :3] @ corners.T + view.matrix[:, 3:]
    if w.max() <= 0:
        return None
    if w.min() <= 0:
        return Window(0, 0, size, size)  # It reaches behind the camera, and may cover anything.
    pixels = (np.stack([u / w, v / w]) + 1) / 2 * size
    low = np.clip(np.floor(pixels.min(axis=1)) - 1, 0, size).astype(int)
    high = np.clip(np.ceil(pixels.max(axis=1)) + 1, 0, size).astype(int)
    return Window(*low, *high) if (low < high).all() else None


class Balls:
    """Balls that enclose the surfaces of a scene's geoms; large meshes get several.

    Attributes:
        radii: In metres [n].
    """

    def __init__(self, model: mujoco.MjModel, geoms: npt.NDArray[np.intp]) -> None:
        owners, centers, radii = [], [], []
        for owner, geom in enumerate(geoms):
            center, radius = _enclosed(model, geom)
            owners += [owner] * len(radius)
            centers.append(center)
            radii.append(radius)
        self._owners = np.array(owners)
        self._count = len(geoms)
        self.radii = np.concatenate(radii)
        self._geoms = geoms[self._owners]
        self._centers = np.concatenate(centers)

    def centers(self, state: mujoco.MjData) -> Floats:
        """Where the balls are now, in metres in the world [n, 3]."""
        axes = state.geom_xmat[self._geoms].reshape(-1, 3, 3)
        turned = np.einsum("nij,nj->ni", axes, self._centers)
        return np.asarray(state.geom_xpos[self._geoms] + turned)

    def geoms_of(self, balls: Bools) -> Bools:
        """Which geoms have one of these balls [n]: [geoms]."""
        chosen: Bools = np.bincount(self._owners[balls], minlength=self._count) > 0
        return chosen


def _enclosed(model: mujoco.MjModel, geom: int) -> tuple[Floats, Floats]:
    """Centres [n, 3] in the geom's frame and radii [n] of the balls around one geom."""
    mesh = model.geom_dataid[geom]
    is_mesh = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
    if not is_mesh or model.mesh_facenum[mesh] <= _WHOLE:
        center, half = np.split(model.geom_aabb[geom], 2)
        return center[None], np.array([np.linalg.norm(half)])
    vertices, faces = surface(model, mesh)
    triangles = _split(vertices[faces].astype(np.float64))
    cell = np.floor(triangles.mean(axis=1) / _PIECE).astype(int)
    cell -= cell.min(axis=0)
    key = np.ravel_multi_index(tuple(cell.T), tuple(cell.max(axis=0) + 1))
    order = np.argsort(key, kind="stable")
    triangles = triangles[order]
    _, starts, counts = np.unique(key[order], return_index=True, return_counts=True)
    low = np.minimum.reduceat(triangles.min(axis=1), starts)
    centers = (low + np.maximum.reduceat(triangles.max(axis=1), starts)) / 2
    away = triangles - np.repeat(centers, counts, axis=0)[:, None]
    return centers, np.maximum.reduceat(np.linalg.norm(away, axis=2).max(axis=1), starts)


def _split(triangles: Floats) -> Floats:
    """Triangles [n, 3, 3] cut until no side is longer than a piece."""
    short = []
    while len(triangles):
        opposite = np.roll(triangles, -1, axis=1)
        is_long = (np.linalg.norm(triangles - opposite, axis=2) > _PIECE).any(axis=1)
        short.append(triangles[~is_long])
        corners, middles = triangles[is_long], ((triangles + opposite) / 2)[is_long]
        at_corners = [
            np.stack([corners[:, k], middles[:, k], middles[:, k - 1]], axis=1) for k in range(3)
        ]
        triangles = np.concatenate([*at_corners, middles])
    return np.concatenate(short)


def surface(
    model: mujoco.MjModel, mesh: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Vertices [n, 3] in metres and triangles [m, 3] of a mesh."""
    first, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
    vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
    return vertices, model.mesh_face[face : face + model.mesh_facenum[mesh]]
