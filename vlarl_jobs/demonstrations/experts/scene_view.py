"""What the experts see: the simulator's own state, by name."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from vlarl_env.simulators.libero.scene import Scene, Untyped
from vlarl_jobs.demonstrations.experts.goals import Goal, read_goals
from vlarl_jobs.demonstrations.experts.motion import Matrix, Points, Vector
from vlarl_jobs.demonstrations.experts.solids import Solids


@dataclass(frozen=True)
class Part:
    """A body of an articulated thing, as it is now."""

    position: Vector
    rotation: Matrix
    points: Points


@dataclass(frozen=True)
class Drawer:
    """A part that slides, as it is now."""

    outwards: Vector
    """[3], of length 1: the direction in which it opens."""
    points: Points


class SceneView:
    """Positions, shapes and goals of one scene, as they are now; metres in the world's frame."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._problem: Untyped = scene.problem
        self._model: mujoco.MjModel = self._problem.sim.model._model
        self.goals: list[Goal] = read_goals(self._problem.parsed_problem)
        self._roots = {
            name: int(self._model.body_rootid[body])
            for name, body in self._problem.obj_body_id.items()
        }
        self._solids = {
            name: Solids.of_roots(self._model, {root}) for name, root in self._roots.items()
        }
        self._parts: dict[int, Solids] = {}

    @property
    def _data(self) -> mujoco.MjData:
        return self._problem.sim.data._data

    @property
    def objects(self) -> list[str]:
        """Names of what can be moved."""
        return list(self._problem.objects_dict)

    @property
    def solids(self) -> list[str]:
        """Names of what can be in the way: objects and fixtures."""
        return list(self._solids)

    @property
    def hand_position(self) -> Vector:
        """The point between the fingertips."""
        return np.array(self._data.site_xpos[self._problem.robots[0].eef_site_id])

    @property
    def hand_rotation(self) -> Matrix:
        """Columns: the axis along which the fingers close, across it, where they point."""
        site = self._problem.robots[0].eef_site_id
        return np.array(self._data.site_xmat[site]).reshape(3, 3)

    @property
    def base_position(self) -> Vector:
        """Where the robot stands."""
        return np.array(self._data.body("robot0_base").xpos)

    @property
    def fingers(self) -> Vector:
        """Positions of the two finger joints, [2]: 0.04 and -0.04 when open."""
        return np.array(self._data.qpos[self._problem.robots[0]._ref_gripper_joint_pos_indexes])

    @property
    def opening(self) -> float:
        """Metres between the fingers, 0 to 0.08."""
        left, right = self.fingers
        return float(left - right)

    def holds(self, goal: Goal) -> bool:
        """Whether a goal is reached now."""
        return bool(self._problem._eval_predicate(goal.literal))

    def is_region(self, name: str) -> bool:
        """Whether a name is a region of something, not a thing."""
        return name in self._problem.object_sites_dict

    def owner(self, region: str) -> str | None:
        """The object or fixture that a region belongs to; none: the table."""
        name = self._problem.object_states_dict[region].parent_name
        return name if name in self._solids else None

    def position(self, name: str) -> Vector:
        """Of an object, fixture or region."""
        return np.array(self._problem.object_states_dict[name].get_geom_state()["pos"])

    def rotation(self, name: str) -> Matrix:
        """Of an object or fixture."""
        body = self._problem.obj_body_id[name]
        return np.array(self._data.xmat[body]).reshape(3, 3)

    def region_rotation(self, region: str) -> Matrix:
        """Of a region."""
        return np.array(self._problem.sim.data.get_site_xmat(region)).reshape(3, 3)

    def region_half_sizes(self, region: str) -> Vector:
        """Half sides along the region's own axes."""
        return np.array(self._problem.object_sites_dict[region].size, dtype=np.float64)

    def points(self, name: str) -> Points:
        """The points that fill an object or fixture."""
        return self._solids[name].points(self._data)

    def all_points(self, *but: str) -> Points:
        """Those of everything that can be in the way, except of some things."""
        others = [self.points(name) for name in self.solids if name not in but]
        return np.concatenate([np.zeros((0, 3)), *others])

    def part(self, name: str, part: str) -> Part:
        """A body of an articulated thing."""
        body = self._model.body(f"{name}_{part}").id
        return Part(
            position=np.array(self._data.xpos[body]),
            rotation=np.array(self._data.xmat[body]).reshape(3, 3),
            points=self._body_points(body),
        )

    def drawer(self, region: str) -> Drawer | None:
        """The drawer whose inside a region is; none: the region doesn't slide."""
        for name in getattr(self._problem.object_sites_dict.get(region), "joints", ()):
            joint = self._model.joint(name)
            if int(joint.type[0]) == mujoco.mjtJoint.mjJNT_SLIDE:
                closed, opened = sorted(joint.range, key=abs)
                return Drawer(
                    outwards=np.sign(opened - closed) * self._data.xaxis[joint.id],
                    points=self._body_points(int(joint.bodyid[0])),
                )
        return None

    def _body_points(self, body: int) -> Points:
        if body not in self._parts:
            self._parts[body] = Solids.of_bodies(self._model, {body})
        return self._parts[body].points(self._data)

    def touching(self, name: str) -> set[str]:
        """Names of what an object or fixture touches; "robot" and "table" stand for the rest."""
        names = {root: name for name, root in self._roots.items()}
        own = self._roots[name]
        found = set()
        for contact in self._data.contact[: self._data.ncon]:
            one, two = (
                int(self._model.body_rootid[self._model.geom_bodyid[geom]])
                for geom in (contact.geom1, contact.geom2)
            )
            if own in (one, two) and one != two:
                other = two if one == own else one
                found.add(names.get(other, "robot" if self._is_robot(other) else "table"))
        return found

    def _is_robot(self, root: int) -> bool:
        name = mujoco.mj_id2name(self._model, mujoco.mjtObj.mjOBJ_BODY, root) or ""
        return name.startswith(("robot", "gripper", "mount"))
