"""The scene of the task that a worker works at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlarl_env.simulators.libero.scene import Profile, Scene
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_jobs.demonstrations.experts.scene_view import SceneView


@dataclass(frozen=True)
class Stage:
    """A task's scene, and what experts see of it."""

    task: SuiteTask
    scene: Scene
    sight: SceneView


class SceneCache:
    """Builds scenes, one at a time: another task's takes the place of the last.

    Args:
        suites: Suites of our own: name = folder of BDDL files.
        profile: The simulator's profile.
    """

    def __init__(self, suites: Mapping[str, Path], profile: Profile) -> None:
        self._catalog = TaskCatalog(suites)
        self._profile: Profile = profile
        self._open: Stage | None = None

    def of(self, suite: str, index: int) -> Stage:
        """The stage of a task, in whatever state it was left.

        Raises:
            UnknownTaskError: there is no such task.
        """
        task = self._catalog.find(suite, index)
        if self._open is None or self._open.task != task:
            self.close()
            scene = Scene(task.bddl_file, self._profile)
            self._open = Stage(task, scene, SceneView(scene))
        return self._open

    def close(self) -> None:
        """Frees the scene."""
        if self._open is not None:
            self._open.scene.close()
        self._open = None
