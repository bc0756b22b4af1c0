"""Builds one LIBERO scene in one of two profiles, and renders it on demand.

`faithful` is the benchmark as published, to the last bit: physics, reflections, multisampling, full
textures. `fast` gives up what hardly shows: the constraint solver runs once a substep instead of
three times, no reflections, no multisampling, textures of at most 512 pixels, meshes of about 4,000
triangles (docs/simulator.md has numbers). Both leave out what nothing reads: cameras that nobody
asked for, and observables.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vlarl_env.simulators.libero import headless

headless.prepare()

import mujoco  # noqa: E402
from libero.libero.envs import TASK_MAPPING, bddl_utils  # noqa: E402
from robosuite import load_controller_config  # noqa: E402
from robosuite.utils.binding_utils import MjRenderContextOffscreen, MjSim  # noqa: E402
from robosuite.utils.errors import RandomizationError  # noqa: E402

from vlarl.proprioception import proprioception  # noqa: E402
from vlarl_env.errors import BrokenSceneError, NoRoomError  # noqa: E402
from vlarl_env.simulators.libero import predicates  # noqa: E402
from vlarl_env.simulators.libero.bddl_reader import read_bddl  # noqa: E402
from vlarl_env.simulators.libero.compiled import compiled  # noqa: E402
from vlarl_env.simulators.libero.control import HeldAction  # noqa: E402
from vlarl_env.simulators.libero.meshes import simplified  # noqa: E402
from vlarl_env.simulators.libero.rendering import Renderer  # noqa: E402
from vlarl_env.simulators.libero.textures import cap_textures  # noqa: E402

Profile = Literal["faithful", "fast"]

NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
"""The action with which the hand stays and the gripper opens."""

Untyped = Any
"""What robosuite and LIBERO hand out: they have no types."""

PLACEMENT_TRIES = 50
"""Draws after which a scene whose objects don't fit is given up."""

CONSTRUCTION_TRIES = 4
"""The same while a scene is built, where each draw takes a second or more."""

_UNBUILDABLE = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What LIBERO, robosuite and MuJoCo raise over a scene that makes no sense to them."""

_BAD_STATE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)

_OBSERVED = (
    "qpos",
    "xpos",
    "xquat",
    "xmat",
    "geom_xpos",
    "geom_xmat",
    "site_xpos",
    "site_xmat",
    "cam_xpos",
    "cam_xmat",
    "light_xpos",
    "light_xdir",
)
"""What a picture and the arm's pose are made from."""

OFFICIAL_SEED = 0
"""Seed of the benchmark's evaluations: set once a task, before the reset of its first state."""


@dataclass(frozen=True)
class _StockReset:
    """Where a reset of the benchmark's loop begins."""

    generator: Untyped
    """numpy's global generator."""
    loads: int
    """Times that the model was loaded before."""


class DivergedError(RuntimeError):
    """The physics produced a state that isn't finite, and MuJoCo started over on its own."""


class _ControlledSim:
    """The simulation as its controller sees it, with positions and velocities up to date.

    The controller asks for a forward pass of its own. Only the constraint solver, which starts from
    where it ended last, can add anything then.
    """

    def __init__(self, sim: Untyped, *, solve_again: bool) -> None:
        self.model = sim.model
        self.data = sim.data
        self._solve_again = solve_again

    def forward(self) -> None:
        """Runs the solver once more, or nothing."""
        if self._solve_again:
            _forward_again(self.model._model, self.data._data)


class _SimplifiedContext(MjRenderContextOffscreen):  # type: ignore[misc]
    """Graphics with simplified meshes, also where they are made anew for a larger frame."""

    def _set_mujoco_context_and_buffers(self) -> None:
        with simplified(self.model._model, headless.cache_folder()):
            super()._set_mujoco_context_and_buffers()


def _forward_again(model: mujoco.MjModel, state: mujoco.MjData) -> None:
    """`mj_forward` where it has just run, to the same bits.

    Positions and velocities come out as they are; only the solver's result moves. The exception is
    a quaternion that `mj_forward` normalises and that is off by more than 1e-15 even then.
    """
    normalized = np.array(state.qpos)
    mujoco.mj_normalizeQuat(model, normalized)
    if np.array_equal(normalized, state.qpos):
        mujoco.mj_forwardSkip(model, state, int(mujoco.mjtStage.mjSTAGE_VEL), 1)
    else:
        mujoco.mj_forward(model, state)


class Scene:
    """A robot, a table, and objects: physics and pictures of one BDDL file.

    Args:
        bddl_file: The scene and its goal.
        profile: See the module.

    Raises:
        BrokenSceneError: the file describes nothing that can be built.
    """

    def __init__(self, bddl_file: Path, profile: Profile) -> None:
        predicates.register()
        self._fast = profile == "fast"
        self._env = _build(bddl_file, capped=self._fast)
        self._bddl_file = bddl_file
        self._substeps = int(self._env.control_timestep / self._env.model_timestep)
        if self._env.sim.model.opt.integrator != mujoco.mjtIntegrator.mjINT_EULER:
            raise ValueError(f"{bddl_file}: scenes are integrated by Euler's method, not this one")
        self._observe_after = self._substeps
        self._observed: dict[str, npt.NDArray[np.float64]] = {}
        self._held = HeldAction(self._env)
        self._properties = tuple(self._env.object_property_initializers)
        self._stock_resets: list[_StockReset] = []
        self._renderer = self._open_renderer()

    def _open_renderer(self) -> Renderer:
        sim = self._env.sim
        if not self._fast:
            return Renderer(MjRenderContextOffscreen(sim, device_id=-1), sim, cull=True)
        # Read when the context is made.
        sim.model.vis.quality.offsamples = 0
        context = _SimplifiedContext(sim, device_id=-1)
        context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return Renderer(context, sim, cull=False)

    def draw_placement(self, seed: int) -> None:
        """Puts the robot home and draws where objects and fixtures stand.

        Equal to reconstructing the scene after `numpy.random.seed(seed)`, two hundred times faster.

        Raises:
            NoRoomError: the objects don't fit into their regions.
        """
        np.random.seed(seed if seed < 2**32 else [seed % 2**32, seed >> 32])
        self._reset(itertools.repeat(1))

    def draw_official(self, number: int) -> None:
        """Puts the robot home and draws a placement as the benchmark does before a state.

        Its evaluations seed numpy once a task, and then reset before each state in turn: where
        fixtures stand for state k is up to the draws of k + 1 resets. They are drawn here once (2
        to 20 ms each) and remembered, so that states may come in any order and in any process.

        Args:
            number: Of the official initial state, from 0; `set_state` is to follow.

        Raises:
            NoRoomError: the objects don't fit into their regions.
        """
        if not self._stock_resets:
            np.random.seed(OFFICIAL_SEED)
            # Construction loads the model before the seed is set.
            self._stock_resets.append(_StockReset(np.random.get_state(), loads=1))
        for reset in range(min(number, len(self._stock_resets) - 1), number + 1):
            begin = self._stock_resets[reset]
            np.random.set_state(begin.generator)
            loads = self._reset(itertools.count(begin.loads + 1))
            if reset + 1 == len(self._stock_resets):
                self._stock_resets.append(_StockReset(np.random.get_state(), loads))

    def _reset(self, loads: Iterable[int]) -> int:
        """Resets as robosuite does, with the random numbers that come next.

        Args:
            loads: For each try, how often LIBERO would have loaded the model. Each time it adds the
                scene's open, closed and lit things to a list once more, and then draws each of the
                list: the last draw counts, and all of them move what is drawn after.

        Returns:
            The loads of the try that succeeded.

        Raises:
            NoRoomError: the objects don't fit into their regions.
        """
        # LIBERO adds the place drawn for a fixture to where its parts are in the model: one that
        # stands where the last draw put it would throw what belongs on it into the air.
        model = self._env.sim.model._model
        for tried, loaded in enumerate(loads, start=1):
            model.body_pos[:], model.body_quat[:] = self._env.unplaced
            self._env.object_property_initializers = [*self._properties] * loaded
            try:
                self._env.reset()
                break
            except RandomizationError as error:
                if tried == PLACEMENT_TRIES:
                    raise NoRoomError(_no_room(self._bddl_file, tried)) from error
        robot = self._env.robots[0]
        # The one thing that robosuite's own soft reset forgets.
        robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        robot.controller.sim = _ControlledSim(self._env.sim, solve_again=not self._fast)
        self._observe_after = self._substeps
        self._observe()
        return loaded

    def set_state(self, state: npt.NDArray[np.float64]) -> None:
        """Sets time, positions and velocities [1 + nq + nv]."""
        sim = self._env.sim
        if state.shape != (1 + sim.model.nq + sim.model.nv,):
            raise ValueError(
                f"an initial state of this scene has {1 + sim.model.nq + sim.model.nv} numbers, "
                f"got {state.shape}"
            )
        sim.set_state_from_flattened(state)
        sim.forward()
        self._env._post_process()
        # In robosuite every forced observation shifts the later ones by a substep (2 ms); LIBERO's
        # `set_init_state` forces one, and so the published numbers rest on frames of the last
        # substep but one.
        self._observe_after = self._substeps - 1
        self._observe()

    def _observe(self) -> None:
        state = self._env.sim.data._data
        self._observed = {name: np.array(getattr(state, name)) for name in _OBSERVED}

    @contextmanager
    def _as_observed(self) -> Iterator[None]:
        """Puts the observed poses in place of the present ones, for a picture."""
        state = self._env.sim.data._data
        present = {name: np.array(getattr(state, name)) for name in _OBSERVED}
        try:
            for name, value in self._observed.items():
                getattr(state, name)[:] = value
            yield
        finally:
            for name, value in present.items():
                getattr(state, name)[:] = value

    def show(self, state: npt.NDArray[np.float64]) -> None:
        """Sets a recorded state, pictured as its control step did: a substep before its end."""
        self.set_state(state)
        model, data = self._env.sim.model._model, self._env.sim.data._data
        reached = np.array(data.qpos)
        mujoco.mj_integratePos(model, data.qpos, data.qvel, -model.opt.timestep)
        mujoco.mj_fwdPosition(model, data)
        data.qpos[:] = reached
        self._observe()

    def state(self) -> npt.NDArray[np.float64]:
        """Time, positions and velocities, flattened: [1 + nq + nv]."""
        return np.asarray(self._env.sim.get_state().flatten(), dtype=np.float64)

    def control_step(self, action: npt.NDArray[np.float64]) -> None:
        """Runs 1/20 s.

        Args:
            action: float64[7] in [-1, 1]: translation, rotation, gripper (-1 open, +1 closed).

        Raises:
            DivergedError: the physics blew up.
        """
        sim = self._env.sim
        model, state = sim.model._model, sim.data._data
        for substep in range(self._substeps):
            if self._fast:
                mujoco.mj_step1(model, state)
                self._control(action, substep)
                mujoco.mj_step2(model, state)
            else:
                # robosuite runs `mj_forward`, the controller's own, and `mj_step`: three times the
                # same positions and velocities, and three passes of the solver, which differ.
                mujoco.mj_checkPos(model, state)
                mujoco.mj_checkVel(model, state)
                mujoco.mj_forward(model, state)
                self._control(action, substep)
                _forward_again(model, state)
                mujoco.mj_checkAcc(model, state)
                mujoco.mj_Euler(model, state)
            if substep + 1 == self._observe_after:
                self._observe()
        self._env._post_process()
        if any(state.warning[kind].number for kind in _BAD_STATE):
            raise DivergedError("the physics diverged: position, velocity or acceleration is huge")

    def _control(self, action: npt.NDArray[np.float64], substep: int) -> None:
        """The controls of a substep; the first sets the controller's goal."""
        if substep == 0:
            self._env._pre_action(action, policy_step=True)
        else:
            self._held.apply(action[6:])

    def succeeded(self) -> bool:
        """Whether the goal holds now."""
        return bool(self._env._check_success())

    def render(self, camera: str, size: int) -> npt.NDArray[np.uint8]:
        """The frame of a camera, upright: uint8[size, size, 3]."""
        with self._as_observed():
            return self._renderer.picture(camera, size)[::-1, ::-1]

    def proprioception(self) -> npt.NDArray[np.float64]:
        """What policies of LIBERO read of the arm, as observed: [8]."""
        return proprioception(*self.effector_pose(), self.finger_joints())

    @property
    def problem(self) -> Untyped:
        """LIBERO's own environment, for who may look behind the picture."""
        return self._env

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the scene's cameras."""
        return tuple(self._env.sim.model.camera_names)

    def effector_pose(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Position in metres [3] and quaternion x, y, z, w [4] of the end effector, world frame."""
        robot = self._env.robots[0]
        position = self._observed["site_xpos"][robot.eef_site_id]
        body = self._env.sim.model.body_name2id(robot.robot_model.eef_name)
        w, x, y, z = self._observed["xquat"][body]
        return position, np.array([x, y, z, w])

    def finger_joints(self) -> npt.NDArray[np.float64]:
        """Metres by which the left and the right finger [2] are from the middle, the right one's
        below 0.
        """
        joints = self._env.robots[0]._ref_gripper_joint_pos_indexes
        return np.asarray(self._observed["qpos"][joints], dtype=np.float64)

    def close(self) -> None:
        """Frees the scene and its context."""
        # The context can only be freed by the thread in which it is current.
        self._env.sim._render_context_offscreen.gl_ctx.make_current()
        del self._renderer  # which holds the context
        self._env.close()


def _no_room(bddl_file: Path, tries: int) -> str:
    text = "there is no room for all objects in the regions that :init puts them into"
    return f"{bddl_file}: {text} ({tries} placements tried); widen their :ranges"


def _build(bddl_file: Path, *, capped: bool) -> Untyped:
    """LIBERO's environment of a scene, without graphics."""
    # LIBERO's own scanner knows no byte order mark and reads in the terminal's encoding.
    bddl_utils.scan_tokens = lambda filename: read_bddl(Path(filename)).tokens()
    problem = _problem_class(bddl_file, capped=capped)
    for tried in range(CONSTRUCTION_TRIES):
        np.random.seed(tried)  # Construction draws a first placement.
        try:
            return problem(
                str(bddl_file),
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=20,
                ignore_done=True,
                hard_reset=False,
            )
        except RandomizationError as error:
            failed = error
        except _UNBUILDABLE as error:
            text = f"{bddl_file}: LIBERO can't build this scene: {type(error).__name__}: {error}"
            raise BrokenSceneError(text) from error
    raise BrokenSceneError(_no_room(bddl_file, CONSTRUCTION_TRIES)) from failed


def _problem_class(bddl_file: Path, *, capped: bool) -> Untyped:
    named = next(group for group in read_bddl(bddl_file).groups if group.head == "problem")
    base = TASK_MAPPING[named.words[-1].text]

    def initialize_sim(self: Untyped, xml_string: str | None = None) -> None:
        # As the base's, but for the kept model; it asks no processor of the XML.
        xml, cache = xml_string or self.model.get_xml(), headless.cache_folder()
        self.sim = MjSim(compiled(cap_textures(xml, cache) if capped else xml, cache))
        self.sim.forward()
        self.initialize_time(self.control_freq)
        model = self.sim.model._model
        self.unplaced = np.array(model.body_pos), np.array(model.body_quat)

    def reset_internal(self: Untyped) -> None:
        # As where the model is loaded anew, with its graphics: one forward pass each. The
        # constraint solver starts from where they end.
        self.sim.forward()
        self.sim.forward()
        base._reset_internal(self)

    # LIBERO checks that the class is named as the BDDL file's problem is.
    members = {"_initialize_sim": initialize_sim, "_reset_internal": reset_internal}
    return type(base.__name__, (base,), members)
