"""One task's episodes: reset, step, frames as JPEG, success and time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from vlarl.config import EnvConfig
from vlarl.config.libero import ACTION_DIM
from vlarl.env.v1 import env_pb2
from vlarl.images import encode_jpeg
from vlarl.models.statistics import to_simulator
from vlarl.proprioception import proprioception
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.commands import wrong_actions
from vlarl_env.simulators.libero.scene import NO_OP, Scene
from vlarl_env.simulators.libero.suites import SuiteTask


class BadCommandError(ValueError):
    """A reset or step that makes no sense; the simulator is unharmed."""


def crop_frame(
    frame: npt.NDArray[np.uint8], crop: tuple[int, int, int, int] | None
) -> npt.NDArray[np.uint8]:
    """A frame [size, size, 3] as it is encoded: the part (top, left, height, width) of it."""
    if crop is not None:
        top, left, height, width = crop
        frame = frame[top : top + height, left : left + width]
    return np.ascontiguousarray(frame)


def _actions(command: env_pb2.StepEpisode) -> npt.NDArray[np.float64]:
    """A command's actions: float64 [horizon, 7].

    Raises:
        BadCommandError: they are other numbers than these.
    """
    if wrong := wrong_actions(command):
        raise BadCommandError(wrong)
    return np.array(command.action, dtype=np.float64).reshape(-1, ACTION_DIM)


class Simulator:
    """A simulator of one task, for one episode after another.

    Args:
        task: What is simulated.
        config: Profile, frame size and crop, action repeat, settling steps.

    Attributes:
        physics_seconds: Wall-clock seconds of physics since construction.
        render_seconds: Wall-clock seconds of rendering and encoding since construction.
    """

    def __init__(self, task: SuiteTask, config: EnvConfig) -> None:
        self._task = task
        self._config = config
        self._scene = Scene(task.bddl_file, config.profile)
        self._cameras: Sequence[str] = ()
        self._limit = 0
        self._control_steps = 0
        self._running = False
        self.physics_seconds = 0.0
        self.render_seconds = 0.0

    def reset(self, command: env_pb2.ResetEpisode) -> env_pb2.InteractResponse:
        """Starts an episode and lets the objects come to rest.

        Raises:
            BadCommandError: no placement, or an unknown camera.
            UnknownTaskError: no such official initial state, or it is another scene's.
        """
        cameras = list(command.cameras) or ["agentview"]
        if unknown := [camera for camera in cameras if camera not in self._scene.cameras]:
            known = ", ".join(sorted(self._scene.cameras))
            raise BadCommandError(f"unknown camera {unknown[0]!r}; the scene has {known}")
        with self._timed("physics_seconds"):
            match command.WhichOneof("placement"):
                case "init_state":
                    length = len(self._scene.state())
                    state = self._task.init_state(command.init_state, length)
                    self._scene.draw_official(command.init_state)
                    self._scene.set_state(state)
                case "placement_seed":
                    self._scene.draw_placement(command.placement_seed)
                case _:
                    raise BadCommandError("a reset needs init_state or placement_seed")
            for _ in range(self._config.settle_steps):
                self._scene.control_step(NO_OP)
        self._cameras = cameras
        self._limit = command.max_control_steps or self._task.max_control_steps
        self._control_steps = 0
        self._running = True
        return self._response(reward=0.0, terminated=False, executed=0)

    def step(self, command: env_pb2.StepEpisode) -> env_pb2.InteractResponse:
        """Holds each action for its control steps, until the goal or the limit is reached.

        Raises:
            BadCommandError: no episode is running, or an action isn't seven finite numbers.
            DivergedError: the physics blew up.
        """
        if not self._running:
            raise BadCommandError("no episode is running: reset first")
        repeat = command.repeat or self._config.action_repeat
        executed, terminated = 0, False
        with self._timed("physics_seconds"):
            for action in to_simulator(_actions(command)):
                executed += 1
                terminated = self._hold(action, repeat)
                if terminated or self._control_steps >= self._limit:
                    break
        response = self._response(
            reward=float(terminated), terminated=terminated, executed=executed
        )
        self._running = not (response.terminated or response.truncated)
        return response

    def _hold(self, action: npt.NDArray[np.float64], repeat: int) -> bool:
        """Holds one action [7], in the simulator's units, no longer than the limit allows; whether
        the goal was reached.
        """
        for _ in range(min(repeat, self._limit - self._control_steps)):
            self._scene.control_step(action)
            self._control_steps += 1
            if self._scene.succeeded():
                return True
        return False

    def frame(self, camera: str) -> npt.NDArray[np.uint8]:
        """The frame that is encoded: upright, cropped if configured, uint8[height, width, 3]."""
        return crop_frame(self._scene.render(camera, self._config.render_size), self._config.crop)

    def close(self) -> None:
        """Frees the scene."""
        self._scene.close()

    def _response(
        self, *, reward: float, terminated: bool, executed: int
    ) -> env_pb2.InteractResponse:
        with self._timed("render_seconds"):
            frames = [
                env_pb2.Frame(camera=camera, image=encode_jpeg(self.frame(camera)))
                for camera in self._cameras
            ]
        position, quaternion = self._scene.effector_pose()
        fingers = self._scene.finger_joints()
        return env_pb2.InteractResponse(
            frames=frames,
            instruction=self._task.instruction,
            robot_state=rollout_pb2.RobotState(
                position=position,
                quaternion=quaternion,
                gripper_opening=fingers[0] - fingers[1],
                proprio=proprioception(position, quaternion, fingers),
            ),
            reward=reward,
            terminated=terminated,
            truncated=not terminated and self._control_steps >= self._limit,
            control_steps=self._control_steps,
            executed=executed,
        )

    @contextmanager
    def _timed(self, total: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, total, getattr(self, total) + time.perf_counter() - start)
