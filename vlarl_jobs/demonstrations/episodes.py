"""One episode of the expert, recorded at every control step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlarl.models.statistics import to_simulator
from vlarl_env.simulators.libero.scene import NO_OP, Scene
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_jobs.demonstrations.experts.expert import Expert
from vlarl_jobs.demonstrations.experts.scene_view import SceneView

Array = npt.NDArray[np.float64]

NOISY_SHARE = 0.5
"""Share of the actions that noise is added to."""


@dataclass(frozen=True)
class Episode:
    """T control steps. Actions are in the simulator's convention: gripper -1 open, +1 closed."""

    states: Array
    """[T, 1 + nq + nv], time, positions and velocities before each control step."""
    robot_states: Array
    """[T, 9], before each control step: finger joints, end effector's position, quaternion; [0, 9]
    where they weren't recorded."""
    actions: Array
    """[T, 7], what was carried out."""
    expert_actions: Array
    """[T, 7], what is to be learnt: the same without noise."""
    success: bool
    """Whether the goal held at the end; of others' recordings, as far as they say."""
    placement_seed: int | None = None
    """Seed that the scene was drawn with; none: unknown."""
    fixtures: str | None = None
    """The scene's XML, which says where fixtures stand; none: as the seed has it."""
    seen_to_succeed: bool = False
    """Whether our own simulator saw the goal hold."""


@dataclass(frozen=True)
class Play:
    """How an episode is played."""

    action_repeat: int
    """Control steps for which each action is held."""
    noise: float = 0.0
    """Standard deviation of what is added to the translation of half of the actions."""
    pace: float = 1.0
    """Share of the full speed at which the expert moves at most."""
    max_control_steps: int | None = None
    """Length at which an episode is cut; none: the task's own."""
    settle_steps: int = 10
    """No-op control steps before the first action."""


def start(
    scene: Scene,
    task: SuiteTask,
    settle_steps: int,
    *,
    placement_seed: int | None = None,
    init_state: int | None = None,
) -> None:
    """Sets a scene up as the simulator does at a reset: one of the two placements, then rest.

    Raises:
        UnknownTaskError: no such official initial state, or it is another scene's.
    """
    if init_state is not None:
        state = task.init_state(init_state, len(scene.state()))
        scene.draw_official(init_state)
        scene.set_state(state)
    else:
        scene.draw_placement(placement_seed or 0)
    for _ in range(settle_steps):
        scene.control_step(NO_OP)


def play(
    scene: Scene, sight: SceneView, limit: int, how: Play, rng: np.random.Generator
) -> Episode:
    """The expert's episode from the scene as it is now.

    Args:
        scene: Where it acts.
        sight: What it sees of that scene.
        limit: Control steps after which it is cut.
        how: Action repeat, noise and pace.
        rng: What the noise is drawn from.

    Raises:
        DivergedError: the physics blew up.
    """
    expert = Expert(sight, how.action_repeat)
    record = _Record(scene, sight)
    success = False
    while not success and len(record.actions) < limit:
        clean = expert.act()
        clean[:3] *= min(1.0, how.pace / max(how.pace, float(np.abs(clean[:3]).max())))
        executed = clean.copy()
        if how.noise and rng.random() < NOISY_SHARE:
            executed[:3] += how.noise * rng.normal(size=3)
        executed = np.clip(executed, -1.0, 1.0)
        for _ in range(min(how.action_repeat, limit - len(record.actions))):
            record.add(to_simulator(executed), to_simulator(clean))
            scene.control_step(to_simulator(executed))
            success = scene.succeeded()
            if success:
                break
    return record.episode(success)


class _Record:
    """What has happened so far."""

    def __init__(self, scene: Scene, sight: SceneView) -> None:
        self._scene = scene
        self._sight = sight
        self._states: list[Array] = []
        self._robot_states: list[Array] = []
        self.actions: list[Array] = []
        self._expert_actions: list[Array] = []

    def add(self, action: Array, expert_action: Array) -> None:
        """Records the scene as it is before an action."""
        position, quaternion = self._scene.effector_pose()
        self._states.append(self._scene.state())
        self._robot_states.append(np.array([*self._sight.fingers, *position, *quaternion]))
        self.actions.append(action)
        self._expert_actions.append(expert_action)

    def episode(self, success: bool) -> Episode:
        """All of it."""
        return Episode(
            states=np.stack(self._states),
            robot_states=np.stack(self._robot_states),
            actions=np.stack(self.actions),
            expert_actions=np.stack(self._expert_actions),
            success=success,
        )
