"""Draws a scene's cameras without what can't be in the picture, to the same pixels.

Software rendering costs by the triangle, in view or not, and MuJoCo has all of them drawn: once for
the picture, and once more for what the scene's mirror shows. Here a geom is left out where none of
the balls that enclose its surface reaches the view. A mirrored view is drawn separately, with the
few geoms that the mirror's part of the picture can show, and only this part is taken from it.

No light of LIBERO's casts shadows, so what is out of view leaves no other trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from vlarl_env.simulators.libero.visibility import (
    Balls,
    Bools,
    Floats,
    View,
    Window,
    may_show,
    may_stand_out,
    view_of,
    window_of,
)

Untyped = Any
"""What robosuite hands out: it has no types."""

HIDDEN_GROUP = 5
"""A geom group that no picture shows."""

_TOUCHING = 1e-4
"""Metres behind a mirror's face that count as before it: MuJoCo renders in single precision."""

_COVERS = 0.25
"""Half the side in metres from which on a box's upper face, a table's, is worth looking under."""

_RECTANGLE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


class Renderer:
    """Pictures from one scene's offscreen context.

    Args:
        context: robosuite's offscreen context, with the effects that are to be drawn.
        sim: Its simulation.
        cull: Whether to leave out what can't be seen: where there are many triangles, it pays.
    """

    def __init__(self, context: Untyped, sim: Untyped, *, cull: bool) -> None:
        model: mujoco.MjModel = sim.model._model
        # Of LIBERO's geoms: those that are seen, not those that collide.
        context.vopt.geomgroup[0] = 0
        context.vopt.geomgroup[1] = 1
        self._context = context
        self._model = model
        self._state: mujoco.MjData = sim.data._data
        drawn = np.array(context.vopt.geomgroup, dtype=bool)[model.geom_group]
        is_plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE  # may be endless
        is_box = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
        reflects = drawn & _reflects(model, model.geom_matid)
        # None of these is in a scene of LIBERO's. Where one is, everything is drawn.
        beyond_us = (
            (reflects & is_plane).any()
            or _reflects(model, model.site_matid).any()
            or model.light_castshadow.any()
        )
        self._culls = cull and not beyond_us
        # A mirror is drawn even out of view: without it, the next box would be the mirror.
        may_hide = drawn & ~is_plane & ~(reflects & is_box)
        self._geoms = np.flatnonzero(may_hide & self._culls)
        if not self._culls:
            return
        self._mirrors = np.flatnonzero(reflects & is_box)
        wide = (model.geom_size[:, :2] >= _COVERS).all(axis=1)
        level = self._state.geom_xmat[:, 8] > 0.9
        self._covers = np.flatnonzero(drawn & is_box & wide & level & _opaque(model))
        self._balls = Balls(model, self._geoms)
        mesh = model.geom_dataid[self._geoms]
        is_mesh = model.geom_type[self._geoms] == mujoco.mjtGeom.mjGEOM_MESH
        self._triangles = np.where(is_mesh, model.mesh_facenum[mesh], 0)

    def picture(self, camera: str, size: int) -> npt.NDArray[np.uint8]:
        """What a camera sees: uint8[size, size, 3], the lower edge first."""
        # robosuite never does this, so that one scene would draw with another's context.
        self._context.gl_ctx.make_current()
        number = self._model.camera(camera).id
        whole = Window(0, 0, size, size)
        if not self._culls:
            return self._draw(number, size, whole, np.ones(len(self._geoms), dtype=bool))
        axes = self._state.cam_xmat[number].reshape(3, 3)
        view = view_of(self._model.cam_fovy[number], self._state.cam_xpos[number], axes, size)
        centers = self._balls.centers(self._state)
        shown = self._balls.geoms_of(self._seen(centers, view, whole))
        if not self._context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION]:
            return self._draw(number, size, whole, shown)
        window, mirrored = self._mirrored(centers, view)
        if window is None:
            return self._draw(number, size, whole, shown, mirrors=False)
        around = self._balls.geoms_of(mirrored | self._seen(centers, view, window))
        apart, together = self._triangles @ around, self._triangles @ (shown | around)
        if self._triangles @ shown + 2 * apart >= 2 * together:
            return self._draw(number, size, whole, shown | around)
        pixels = self._draw(number, size, whole, shown, mirrors=False)
        rows, columns = slice(window.bottom, window.top), slice(window.left, window.right)
        pixels[rows, columns] = self._draw(number, size, window, around)
        return pixels

    def _seen(self, centers: Floats, view: View, window: Window) -> Bools:
        """Which balls a window of a picture may show, other than in mirrors: [n]."""
        radii = self._balls.radii
        seen = may_show(centers, radii, view, window)
        for cover in self._covers:
            face, up = self._upper_face(cover)
            if (view.eye - face[0]) @ up > 0:
                seen &= may_stand_out(centers, radii, view, window, face)
        return seen

    def _mirrored(self, centers: Floats, view: View) -> tuple[Window | None, Bools]:
        """The part of a picture that mirrors cover, and which balls they may show: [n]."""
        radii = self._balls.radii
        windows = []
        shown = np.zeros(len(centers), dtype=bool)
        for mirror in self._mirrors:
            # MuJoCo mirrors in a box's upper face, of the first box in the scene that reflects.
            face, up = self._upper_face(mirror)
            window = window_of(face, view)
            if window is None or (view.eye - face[0]) @ up < -_TOUCHING:
                continue
            windows.append(window)
            height = (centers - face[0]) @ up
            mirrored = centers - 2 * height[:, None] * up
            shown |= (height + radii > -_TOUCHING) & may_show(mirrored, radii, view, window)
        if not windows:
            return None, shown
        left, bottom, right, top = np.transpose(windows)
        return Window(left.min(), bottom.min(), right.max(), top.max()), shown

    def _upper_face(self, box: np.intp) -> tuple[Floats, Floats]:
        """Corners [4, 3] in metres and direction [3] of a box's upper side."""
        axes = self._state.geom_xmat[box].reshape(3, 3)
        half = self._model.geom_size[box]
        center = self._state.geom_xpos[box] + half[2] * axes[:, 2]
        return center + (_RECTANGLE * half[:2]) @ axes[:, :2].T, axes[:, 2]

    def _draw(
        self, camera: int, size: int, window: Window, shown: Bools, *, mirrors: bool = True
    ) -> npt.NDArray[np.uint8]:
        """A window of a picture, drawn with these of the geoms that may be hidden [n].

        Without `mirrors`, also without reflections.
        """
        flags = self._context.scn.flags
        as_set = flags[mujoco.mjtRndFlag.mjRND_REFLECTION]
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = as_set and mirrors
        with self._hidden(self._geoms[~shown]):
            self._context.render(size, size, camera_id=camera)
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = as_set
        left, bottom, right, top = window
        pixels = np.empty((top - bottom, right - left, 3), dtype=np.uint8)
        place = mujoco.MjrRect(left, bottom, right - left, top - bottom)
        mujoco.mjr_readPixels(pixels, None, place, self._context.con)
        return pixels

    @contextmanager
    def _hidden(self, geoms: npt.NDArray[np.intp]) -> Iterator[None]:
        groups = np.array(self._model.geom_group)
        self._model.geom_group[geoms] = HIDDEN_GROUP
        try:
            yield
        finally:
            self._model.geom_group[:] = groups


def _opaque(model: mujoco.MjModel) -> Bools:
    """Whether nothing is seen through a geom: [ngeom]."""
    of_material = np.append(model.mat_rgba[:, 3], 1)[model.geom_matid]  # -1 is no material
    opaque: Bools = (of_material == 1) & (model.geom_rgba[:, 3] == 1)
    return opaque


def _reflects(model: mujoco.MjModel, material: npt.NDArray[np.int32]) -> Bools:
    """Whether things of these materials [n] reflect, should they be planes or boxes: [n]."""
    reflects: Bools = np.append(model.mat_reflectance, 0)[material] > 0  # -1 is no material
    return reflects
