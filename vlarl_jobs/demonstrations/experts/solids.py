"""Shapes as clouds of points that fill them: enough to see where fingers fit."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt

from vlarl_jobs.demonstrations.experts.motion import Points

_SPACING = 0.004
_MOST_PER_SIDE = 14
_MESH_SHELLS = 4


def fill_box(half_sizes: Points) -> Points:
    """Points of a box about the origin with half sides [3]: its surface, and at most 4 mm apart
    inside where that takes no more than 14 a side.
    """
    counts = np.clip(np.ceil(2 * half_sizes / _SPACING).astype(int) + 1, 2, _MOST_PER_SIDE)
    sides = [
        np.linspace(-half, half, count) for half, count in zip(half_sizes, counts, strict=True)
    ]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)


def _fill_geom(model: mujoco.MjModel, geom: int) -> Points:
    """Points of a collision geometry in its own frame; round ones are taken as their box."""
    size = np.array(model.geom_size[geom])
    kind = model.geom_type[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        vertices = np.array(model.mesh_vert[first : first + count], dtype=np.float64)
        shells = np.linspace(0, 1, _MESH_SHELLS + 1)[1:]
        centre = vertices.mean(axis=0)
        return np.concatenate([centre + shell * (vertices - centre) for shell in shells])
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return fill_box(np.full(3, size[0]))
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return fill_box(np.array([size[0], size[0], size[1] + size[0]]))
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return fill_box(np.array([size[0], size[0], size[1]]))
    return fill_box(size)


@dataclass(frozen=True)
class Solids:
    """The collision geometry of some bodies, as points that follow them."""

    local: Points
    """[n, 3], in the frame of each point's geometry."""
    geoms: npt.NDArray[np.int64]
    """[n], each point's geometry."""

    @classmethod
    def of_roots(cls, model: mujoco.MjModel, roots: set[int]) -> Solids:
        """All that collides among the bodies below some roots of the kinematic tree."""
        return cls.of_bodies(model, set(np.flatnonzero(np.isin(model.body_rootid, list(roots)))))

    @classmethod
    def of_bodies(cls, model: mujoco.MjModel, bodies: set[int]) -> Solids:
        """All that collides of some bodies."""
        local, geoms = [np.zeros((0, 3))], [np.zeros(0, np.int64)]
        for geom in range(model.ngeom):
            collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
            if collides and model.geom_bodyid[geom] in bodies:
                points = _fill_geom(model, geom)
                local.append(points)
                geoms.append(np.full(len(points), geom))
        return cls(np.concatenate(local), np.concatenate(geoms))

    def points(self, data: mujoco.MjData) -> Points:
        """Where they are now, [n, 3] in the world's frame."""
        rotations = np.asarray(data.geom_xmat).reshape(-1, 3, 3)[self.geoms]
        points: Points = np.einsum("nij,nj->ni", rotations, self.local)
        points += data.geom_xpos[self.geoms]
        return points
