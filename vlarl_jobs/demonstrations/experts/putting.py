"""Putting a thing on or in a place: on(...) and in(...) goals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlarl_jobs.demonstrations.experts.dragging import drag
from vlarl_jobs.demonstrations.experts.goals import Goal
from vlarl_jobs.demonstrations.experts.grasps import TIP, Grasp, find_grasps, way_out
from vlarl_jobs.demonstrations.experts.motion import (
    Matrix,
    Vector,
    grip_along,
    rotation_between,
)
from vlarl_jobs.demonstrations.experts.picking import OPENED, Phase, Situation, act, phase_of
from vlarl_jobs.demonstrations.experts.places import free_height, place_for
from vlarl_jobs.demonstrations.experts.scene_view import SceneView

_MOVED = 0.004
_SAME_GRASP = 0.012
_FAILED_COST = 3.0


@dataclass
class _Memory:
    """What is remembered of a thing."""

    rest: Vector
    """Where it rested last."""
    seen: Matrix
    """Its pose [4, 3] when its grasps were found: rotation, then position."""
    grasps: list[Grasp]
    """In the thing's own frame, the best first."""
    failed: list[Grasp] = field(default_factory=list)
    closing: Grasp | None = None
    """The grasp that the fingers were closing for at the last action."""


class Putting:
    """The skill, with its memory of one episode."""

    def __init__(self, sight: SceneView, repeat: int) -> None:
        self._sight = sight
        self._repeat = repeat
        self._home = _closing_yaw(sight.hand_rotation)
        self._memory: dict[str, _Memory] = {}

    def act(self, goal: Goal) -> Vector:
        """The next action towards a goal."""
        memory = self._look(goal)
        if not memory.grasps:
            return drag(self._sight, goal, self._repeat)
        grasp = self._choose(memory)
        situation = self._situation(goal, memory, grasp)
        phase = phase_of(situation)
        if memory.closing is not None and phase is Phase.APPROACH:
            memory.failed.append(memory.closing)
        memory.closing = grasp if phase is Phase.CLOSE else None
        return act(situation, self._repeat)

    def _look(self, goal: Goal) -> _Memory:
        """Finds grasps anew where a thing that nobody holds has moved."""
        sight, thing = self._sight, goal.subject
        pose = np.vstack([sight.rotation(thing), sight.position(thing)])
        memory = self._memory.get(thing)
        if memory is None:
            memory = _Memory(pose[3], pose, self._grasps(goal))
            self._memory[thing] = memory
        elif sight.opening > OPENED and "robot" not in sight.touching(thing):
            memory.rest = pose[3]
            if np.abs(pose[3] - memory.seen[3]).max() > _MOVED or _tilted(pose, memory.seen):
                memory.seen, memory.grasps = pose, self._grasps(goal)
        return memory

    def _grasps(self, goal: Goal) -> list[Grasp]:
        sight, thing = self._sight, goal.subject
        rotation, position = sight.rotation(thing), sight.position(thing)
        obstacles = sight.all_points(thing)
        if goal.predicate == "on":
            # The hand must fit where the thing goes, too.
            obstacles = np.concatenate([obstacles, obstacles + position - place_for(sight, goal)])
        flat = rotation[:2, int(np.argmax(np.linalg.norm(rotation[:2], axis=0)))]
        points = sight.points(thing)
        found = find_grasps(
            points,
            obstacles,
            sight.base_position,
            self._home,
            float(np.arctan2(flat[1], flat[0])),
            float(points[:, 2].min()),
        )
        return [
            Grasp(rotation.T @ (grasp.point - position), rotation.T @ grasp.axis, grasp.cost)
            for grasp in found
        ]

    def _choose(self, memory: _Memory) -> Grasp:
        def cost(grasp: Grasp) -> float:
            tried = sum(
                float(np.linalg.norm(grasp.point - failed.point)) < _SAME_GRASP
                and abs(float(grasp.axis @ failed.axis)) > 0.95
                for failed in memory.failed
            )
            return grasp.cost + _FAILED_COST * tried

        return min(memory.grasps, key=cost)

    def _situation(self, goal: Goal, memory: _Memory, grasp: Grasp) -> Situation:
        sight, thing = self._sight, goal.subject
        rotation, position = sight.rotation(thing), sight.position(thing)
        point = position + rotation @ grasp.point
        hand, hand_rotation = sight.hand_position, sight.hand_rotation
        place = place_for(sight, goal)
        obstacles, shape = sight.all_points(thing), sight.points(thing)
        everything = np.concatenate([obstacles, shape])
        lowest = min(float(shape[:, 2].min()), float(hand[2]) - TIP)
        return Situation(
            hand=hand,
            opening=sight.opening,
            grasp=point,
            turn=rotation_between(hand_rotation, grip_along(rotation @ grasp.axis, hand_rotation)),
            tilt=rotation_between(hand_rotation, grip_along(hand_rotation[:, 0], hand_rotation)),
            thing=position,
            rest=memory.rest,
            supported=bool(sight.touching(thing) - {"robot"}),
            occupied=any(
                "robot" in sight.touching(other) for other in sight.objects if other != thing
            ),
            place=place,
            way_out=way_out(obstacles, hand, hand_rotation),
            free_hand=free_height(everything, hand, point, float(shape[:, 2].max())) + TIP,
            free_thing=free_height(obstacles, position, place, float(place[2]))
            + float(position[2])
            - lowest,
        )


def _closing_yaw(rotation: Matrix) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _tilted(pose: Matrix, seen: Matrix) -> bool:
    return float(np.abs(pose[:3] - seen[:3]).max()) > 0.1
