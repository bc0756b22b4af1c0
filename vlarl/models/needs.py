"""What a policy reads of an environment, and whether the configuration gives it that.

Asked of a checkpoint before anything starts, and of the policy server by whoever plays episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlarl.config import EnvConfig, ProcessRewardConfig, RewardConfig, RunConfig
from vlarl.config.libero import MAIN_CAMERA, PROPRIO_DIM
from vlarl.config.suites import scene_cameras
from vlarl.env.v1 import env_pb2
from vlarl.errors import ConfigError
from vlarl.models.spec import PolicySpec
from vlarl.policy.v1 import policy_pb2


@dataclass(frozen=True)
class PolicyNeeds:
    """A policy's observations and answers, as far as an environment has to know them."""

    cameras: tuple[str, ...] = (MAIN_CAMERA,)
    """Names of the cameras that it sees, the main one first."""
    proprio: int = 0
    """Numbers of proprioception that it reads; 0: none."""
    chunk: int = 1
    """Control steps of one answer."""

    @classmethod
    def of_checkpoint(cls, spec: PolicySpec) -> PolicyNeeds:
        """Those of a checkpoint."""
        return cls(spec.cameras, spec.proprio_dim, spec.chunk)

    @classmethod
    def of_server(cls, described: policy_pb2.GetPolicyResponse) -> PolicyNeeds:
        """Those of the policy that serves; one that doesn't say sees one camera."""
        return cls(
            tuple(described.cameras) or (MAIN_CAMERA,), described.proprio, max(1, described.chunk)
        )

    def shown(self, env: EnvConfig) -> tuple[str, ...]:
        """Names of the scene's cameras that are shown, in the policy's order: of `env.cameras` as
        many as it sees.

        Raises:
            ConfigError: there are fewer.
        """
        cameras = self.cameras if env.cameras is None else env.cameras
        if len(cameras) < len(self.cameras):
            raise ConfigError(
                f"env.cameras names {len(cameras)} ({', '.join(cameras)}), and the policy sees "
                f"{len(self.cameras)} ({', '.join(self.cameras)}): name as many, in its order, or "
                "leave env.cameras out"
            )
        return cameras[: len(self.cameras)]

    def executed(self, env: EnvConfig, limit: int | None = None) -> int:
        """Actions of each answer that are executed.

        Args:
            env: how many are wanted.
            limit: the most actions of an episode; None: nobody knows, or there is no limit.

        Raises:
            ConfigError: `env.replan_after` are more than an answer has, or an answer's actions
                more than the episode's.
        """
        actions = self.chunk if env.replan_after is None else env.replan_after
        if actions > self.chunk:
            raise ConfigError(
                f"env.replan_after is {actions}, and an answer of the policy has {self.chunk} "
                f"action{'s' * (self.chunk > 1)}: set it to at most that, or leave it out"
            )
        if limit is not None and actions > limit:
            raise ConfigError(
                f"{actions} actions of each answer are executed, and an episode has at most "
                f"{limit}: set tasks.max_actions to at least {actions}, or env.replan_after to at "
                f"most {limit}"
            )
        return actions

    def check_proprio(self) -> None:
        """Makes sure that the simulator has what the policy reads of the arm.

        Raises:
            ConfigError: it reads another number.
        """
        if self.proprio not in (0, PROPRIO_DIM):
            raise ConfigError(
                f"the policy reads {self.proprio} numbers of proprioception, and the simulated arm "
                f"has {PROPRIO_DIM} (position 3, axis-angle 3, fingers 2): take a policy that was "
                "trained on LIBERO"
            )


def check_needs(
    config: RunConfig, needs: PolicyNeeds, tasks: Sequence[env_pb2.TaskDescription] = ()
) -> None:
    """Makes sure, before anything starts, that a run can show the policy what it reads.

    Args:
        config: the run's.
        needs: the policy's.
        tasks: see `most_actions`.

    Raises:
        ConfigError: it can't; the message says what to do.
    """
    suite = config.tasks.suite
    known = scene_cameras(config.env, suite, config.tasks.indices)
    unknown = [camera for camera in needs.shown(config.env) if camera not in known]
    if unknown:
        key = "env.cameras" if config.env.cameras else "the policy's cameras"
        raise ConfigError(
            f"{key}: the scenes of {suite} have no camera {unknown[0]!r}; set env.cameras to some "
            f"of {', '.join(known)}"
        )
    needs.executed(config.env, most_actions(config, tasks))
    needs.check_proprio()


def most_actions(config: RunConfig, tasks: Sequence[env_pb2.TaskDescription]) -> int | None:
    """The most actions that an episode of any of the run's tasks may have; None: nobody knows here.

    Args:
        config: the run's.
        tasks: those that are meant, as simulators describe them; empty: none has been asked, and
            only the limits of LIBERO's own suites are known.
    """
    if (limit := config.actions_of_an_episode) is not None or not tasks:
        return limit
    steps = max(task.max_control_steps for task in tasks)
    return math.ceil(steps / config.env.action_repeat)


def check_mini_batch(
    config: RunConfig, needs: PolicyNeeds, tasks: Sequence[env_pb2.TaskDescription] = ()
) -> None:
    """Makes sure that an iteration can have a mini-batch's answers, where groups are compared.

    Args:
        config: the run's, which looked at this as if each answer were one action.
        needs: the policy's.
        tasks: see `most_actions`.

    Raises:
        ConfigError: it can't.
    """
    trainer, limit = config.trainer, most_actions(config, tasks)
    if (groups := trainer.groups) is None or limit is None:
        return
    executed = needs.executed(config.env, limit)
    most = trainer.episodes_per_iteration * math.ceil(limit / executed)
    if most < groups.mini_batch:
        raise ConfigError(
            f"trainer.{trainer.algorithm}.mini_batch is {groups.mini_batch} answers of the policy, "
            f"but {trainer.episodes_per_iteration} episodes (trainer.episodes_per_iteration) of at "
            f"most {limit} actions, {executed} of each answer, are {most}: lower it, or order more "
            "episodes"
        )


def check_reward_form(reward: RewardConfig, needs: PolicyNeeds) -> None:
    """Makes sure that a process reward model can score the policy's answers.

    Raises:
        ConfigError: it scores each action's tokens, and an answer has those of several, however
            many of them are executed.
    """
    if isinstance(reward, ProcessRewardConfig) and reward.form == "additive" and needs.chunk > 1:
        raise ConfigError(
            'reward.form = "additive" scores actions one by one, and the policy answers '
            f'{needs.chunk} at once: set reward.form = "potential", which scores states, or '
            'reward.model = "outcome"'
        )


def check_recordable(needs: PolicyNeeds, option: str) -> None:
    """Makes sure that episodes can be kept as a dataset.

    Args:
        needs: the policy's.
        option: the key or option that asks for it.

    Raises:
        ConfigError: a dataset has one action a frame, and the policy answers several.
    """
    if needs.chunk > 1:
        raise ConfigError(
            f"{option} keeps one action a frame, and the policy answers {needs.chunk} actions to "
            f"each: leave {option} out"
        )
