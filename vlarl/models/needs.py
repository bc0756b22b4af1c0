"""What a policy reads of an environment, and whether the configuration gives it that.

Asked of a checkpoint before anything starts, and of the policy server by whoever plays episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlarl.config import EnvConfig, RunConfig
from vlarl.config.libero import LIBERO_SUITES, MAIN_CAMERA, PROPRIO_DIM, SCENE_CAMERAS
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
                f"{limit}: raise tasks.max_actions, or set env.replan_after to at most {limit}"
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


def check_needs(config: RunConfig, needs: PolicyNeeds) -> None:
    """Makes sure, before anything starts, that a run can show the policy what it reads.

    Raises:
        ConfigError: it can't; the message says what to do.
    """
    cameras = needs.shown(config.env)
    unknown = [camera for camera in cameras if camera not in SCENE_CAMERAS]
    if unknown and config.tasks.suite in LIBERO_SUITES:
        key = "env.cameras" if config.env.cameras else "the policy's cameras"
        raise ConfigError(
            f"{key}: the scenes of {config.tasks.suite} have no camera {unknown[0]!r}; set "
            f"env.cameras to some of {', '.join(SCENE_CAMERAS)}"
        )
    needs.executed(config.env, config.actions_of_an_episode)
    needs.check_proprio()


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
