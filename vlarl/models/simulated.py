"""Whether a policy can act in the simulators of a run: looked at before any is started."""

from __future__ import annotations

from vlarl.config import ConfigError, EnvConfig, RunConfig
from vlarl.config.libero import LIBERO_SUITES, PROPRIO_DIM, SCENE_CAMERAS
from vlarl.models.spec import PolicySpec


def check_simulated(config: RunConfig, model: PolicySpec, limit: int = 0) -> None:
    """Makes sure that scenes have what a policy sees and reads, and that a chunk fits an episode.

    Args:
        config: the run's.
        model: the policy.
        limit: control steps of an episode by its suite; 0: unknown, where it isn't LIBERO's.

    Raises:
        ConfigError: something is missing, or too long; the message says what to do.
    """
    _check_cameras(config.env, model)
    if model.proprio_dim not in (0, PROPRIO_DIM):
        raise ConfigError(
            f"{model.name} reads {model.proprio_dim} numbers of proprioception, and the simulated "
            f"arm has {PROPRIO_DIM}: take a policy that was fine-tuned on LIBERO's"
        )
    repeat, most = config.env.action_repeat, config.tasks.max_actions
    steps = most * repeat or limit or LIBERO_SUITES.get(config.tasks.suite, 0)
    if steps and model.chunk * repeat > steps:
        way = (
            f"set tasks.max_actions to {model.chunk} at least"
            if most
            else f"set env.action_repeat to less than {repeat}"
            if model.chunk <= steps
            else "set tasks.max_actions, or take a suite with longer episodes"
        )
        raise ConfigError(
            f"{model.name} answers {model.chunk} actions at once, which last "
            f"{model.chunk * repeat} control steps, and an episode of {config.tasks.suite} ends "
            f"after {steps}: {way}"
        )


def _check_cameras(env: EnvConfig, model: PolicySpec) -> None:
    shown = tuple(env.cameras or model.cameras)
    if len(shown) < len(model.cameras):
        raise ConfigError(
            f"{model.name} sees {len(model.cameras)} cameras ({', '.join(model.cameras)}), and "
            f"env.cameras names {len(shown)} ({', '.join(shown)}): name one for each, in its "
            "order, or leave env.cameras out"
        )
    for camera in shown:
        if camera not in SCENE_CAMERAS:
            who = "env.cameras names" if env.cameras else f"{model.name} sees"
            raise ConfigError(
                f"{who} the camera {camera!r}, which LIBERO's scenes lack: set env.cameras to one "
                f"of theirs for each that the policy sees: {', '.join(SCENE_CAMERAS)}"
            )
