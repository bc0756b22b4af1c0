"""robosuite's arm controller and gripper between two actions, to the same bits, at half the cost.

An action is held for 25 substeps of 2 ms. Only the first sets a goal; the other 24 compute torques
towards it. robosuite looks up every name anew in each of them, takes each Jacobian twice, and keeps
records that nothing reads. The expressions here are robosuite's own, in its order and its memory
layouts: sums that are added up in another order would be other numbers.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from robosuite.controllers.osc import OperationalSpaceController
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

Untyped = Any
"""What robosuite hands out: it has no types."""


class HeldAction:
    """The controller of one scene's robot, for all substeps of an action but the first.

    Operational space control (Khatib 1987): torques that move the end effector towards a pose as a
    critically damped spring would, and the elbow, where that is free, towards its first posture.
    """

    def __init__(self, env: Untyped) -> None:
        """Takes the names of an environment's robot apart.

        Raises:
            ValueError: the robot isn't controlled as LIBERO's are.
        """
        robot = env.robots[0]
        controller = robot.controller
        as_liberos = (
            type(controller) is OperationalSpaceController
            and controller.uncoupling
            and controller.interpolator_pos is None
            and controller.interpolator_ori is None
        )
        if not as_liberos:
            raise ValueError("this isn't LIBERO's controller: OSC_POSE, uncoupled, no interpolator")
        model = env.sim.model
        self._robot = robot
        self._model: mujoco.MjModel = model._model
        self._state: mujoco.MjData = env.sim.data._data
        self._site = model.site_name2id(controller.eef_name)
        self._joints_pos, self._joints_vel = controller.qpos_index, controller.qvel_index
        self._arm = robot._ref_joint_actuator_indexes
        self._low = model.actuator_ctrlrange[self._arm, 0]
        self._high = model.actuator_ctrlrange[self._arm, 1]
        self._fingers = [model.actuator_name2id(name) for name in robot.gripper.actuators]
        fingers = model.actuator_ctrlrange[self._fingers]
        self._finger_bias = 0.5 * (fingers[:, 1] + fingers[:, 0])
        self._finger_weight = 0.5 * (fingers[:, 1] - fingers[:, 0])

    def apply(self, gripper_action: np.ndarray) -> None:
        """Sets the controls of one more substep.

        Args:
            gripper_action: float64 [1], of the action that is held.
        """
        control = self._state.ctrl
        control[self._arm] = np.clip(self._torques(), self._low, self._high)
        opened = self._robot.gripper.format_action(gripper_action)
        control[self._fingers] = self._finger_bias + self._finger_weight * opened

    def _torques(self) -> np.ndarray:
        """Joint torques [7] towards the controller's goal."""
        controller, state = self._robot.controller, self._state
        controller.sim.forward()
        velocities = state.qvel
        jacp, jacr = np.zeros((2, 3, self._model.nv))
        mujoco.mj_jacSite(self._model, state, jacp, jacr, self._site)
        mass = np.ndarray(shape=(self._model.nv, self._model.nv), dtype=np.float64, order="C")
        mujoco.mj_fullM(self._model, mass, state.qM)
        mass = mass[self._joints_vel, :][:, self._joints_vel]
        j_pos = np.array(jacp[:, self._joints_vel])
        j_ori = np.array(jacr[:, self._joints_vel])
        j_full = np.array(np.vstack([j_pos, j_ori]))

        orientation = np.array(state.site_xmat[self._site].reshape([3, 3]))
        away = controller.goal_pos - state.site_xpos[self._site]
        turned = orientation_error(np.array(controller.goal_ori), orientation)
        kp, kd = controller.kp, controller.kd
        force = away * kp[0:3] + -np.dot(jacp, velocities) * kd[0:3]
        torque = turned * kp[3:6] + -np.dot(jacr, velocities) * kd[3:6]
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, j_full, j_pos, j_ori)
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        torques = np.dot(j_full.T, wrench) + state.qfrc_bias[self._joints_vel]
        torques += nullspace_torques(
            mass,
            nullspace,
            controller.initial_joint,
            np.array(state.qpos[self._joints_pos]),
            np.array(velocities[self._joints_vel]),
        )
        result: np.ndarray = torques
        return result
