"""The job of a worker that plays the expert's episodes."""

from __future__ import annotations

import numpy as np

from vlarl_env.errors import BrokenSceneError, NoRoomError, UnknownTaskError
from vlarl_env.simulators.libero.scene import DivergedError
from vlarl_jobs.demonstrations.episode_files import save_episode
from vlarl_jobs.demonstrations.episodes import Play, play, start
from vlarl_jobs.demonstrations.experts.goals import NoExpertError
from vlarl_jobs.demonstrations.messages import Answer, PlayOrder, Settings
from vlarl_jobs.demonstrations.scene_cache import SceneCache


class Player:
    """Plays episodes, one after the other, in the scene of the task that was asked for last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stages = SceneCache(settings.suites, settings.profile)

    def do(self, order: str) -> Answer:
        """Plays one episode and keeps it if it reached the goal."""
        wanted = PlayOrder.model_validate_json(order)
        how = Play(self._settings.action_repeat, self._settings.noise, self._settings.pace)
        try:
            stage = self._stages.of(wanted.suite, wanted.index)
            limit = stage.task.max_control_steps
            if self._settings.max_actions is not None:
                limit = self._settings.max_actions * how.action_repeat
            start(
                stage.scene,
                stage.task,
                how.settle_steps,
                placement_seed=wanted.placement_seed,
                init_state=wanted.init_state,
            )
            rng = np.random.default_rng(wanted.noise_seed)
            episode = play(stage.scene, stage.sight, limit, how, rng)
        except (DivergedError, NoRoomError) as error:
            return Answer(success=False, error=str(error))
        except (BrokenSceneError, NoExpertError, UnknownTaskError) as error:
            return Answer(success=False, error=str(error), hopeless=True)
        if wanted.part is not None and (episode.success or wanted.keep_failures):
            save_episode(wanted.part, episode, wanted.placement_seed)
        return Answer(success=episode.success, length=len(episode.actions))
