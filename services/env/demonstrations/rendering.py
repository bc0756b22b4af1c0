"""The job of a worker that renders recorded episodes: what a policy would have seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
import numpy.typing as npt

from services.env.demonstrations.episodes import Episode
from services.env.demonstrations.hdf5 import DemoFileError, read_episode, read_header
from services.env.demonstrations.orders import Answer, RenderOrder, Settings
from services.env.demonstrations.parts import RenderedEpisode, save_rendered
from services.env.demonstrations.stage import Stage, Stages
from services.env.demonstrations.steps import PolicySteps, grouped_actions, held_actions
from services.env.experts.expert import goal_point
from services.env.experts.sight import Sight
from services.env.scene import OFFICIAL_SEED, Scene
from services.env.simulator import crop_frame
from vlarl.demonstrations import Frames
from vlarl.openvla.images import encode_jpeg

_BODY = re.compile(r"<body\b([^>]*)>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


class Renderer:
    """Renders episodes, one after the other, in the scene of the task that was asked for last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stages = Stages(settings.suites, settings.profile)

    def do(self, order: str) -> Answer:
        """Renders one episode and keeps it."""
        wanted = RenderOrder.model_validate_json(order)
        try:
            rendered = self.render(wanted.suite, wanted.index, wanted.file, wanted.demo)
        except DemoFileError as error:
            return Answer(error=str(error))
        save_rendered(wanted.part, rendered)
        return Answer(length=len(rendered.frames))

    def render(self, suite: str, index: int, file: Path, demo: str) -> RenderedEpisode:
        """The samples of one demonstration of a task.

        Raises:
            DemoFileError: the file lacks something, or is of another scene.
        """
        header, episode = read_header(file), read_episode(file, demo)
        stage = self._stages.of(suite, index)
        if episode.states.shape[1] != len(stage.scene.state()):
            raise DemoFileError(
                f"{file}: {demo} has states of {episode.states.shape[1]} numbers, the scene of "
                f"{suite} task {index} has {len(stage.scene.state())}"
            )
        if self._settings.camera not in stage.scene.cameras:
            known = ", ".join(sorted(stage.scene.cameras))
            raise DemoFileError(
                f"the scene of {suite} task {index} has no camera {self._settings.camera!r}, but "
                f"{known}"
            )
        steps = policy_steps(episode, header.action_repeat, self._settings.action_repeat)
        return self._render(stage, episode, steps)

    def close(self) -> None:
        """Frees the scene."""
        self._stages.close()

    def _render(self, stage: Stage, episode: Episode, steps: PolicySteps) -> RenderedEpisode:
        scene, sight = stage.scene, stage.sight
        names = pose_names(sight)
        frames, poses = [], []
        for state in _placed(scene, episode, steps):
            scene.show(state)
            frame = scene.render(self._settings.camera, self._settings.render_size)
            frames.append(encode_jpeg(crop_frame(frame, self._settings.crop)))
            poses.append(poses_now(sight))
        table = np.array(poses, dtype=np.float32).reshape(len(frames), len(names))
        return RenderedEpisode(
            frames=Frames.of(frames),
            actions=steps.actions,
            poses=table,
            pose_names=names,
            starts=steps.starts.astype(np.int32),
            robot_states=episode.robot_states.astype(np.float32),
            placement_seed=episode.placement_seed,
        )


def policy_steps(episode: Episode, recorded_repeat: int, repeat: int) -> PolicySteps:
    """The samples of an episode: none of one that missed its goal.

    Args:
        episode: The recording.
        recorded_repeat: Control steps for which its actions were held.
        repeat: Control steps for which the policy's will be: the same, or any number where the
            recording chose an action at each control step.
    """
    if not episode.success:
        return PolicySteps(np.zeros(0, np.int64), np.zeros((0, 7), np.float32))
    if recorded_repeat > 1:
        return held_actions(episode.expert_actions, recorded_repeat)
    return grouped_actions(episode.expert_actions, repeat)


def _placed(
    scene: Scene, episode: Episode, steps: PolicySteps
) -> Iterator[npt.NDArray[np.float64]]:
    """The states before each sample, after the fixtures were put where they stood."""
    scene.draw_placement(
        OFFICIAL_SEED if episode.placement_seed is None else episode.placement_seed
    )
    if episode.fixtures is not None:
        place_fixtures(scene, episode.fixtures)
    yield from episode.states[steps.starts]


def place_fixtures(scene: Scene, xml: str) -> None:
    """Puts fixtures where a recorded scene's XML has them: their poses are in no state."""
    model = scene.problem.sim.model._model
    roots = {fixture.root_body for fixture in scene.problem.fixtures_dict.values()}
    for tag in _BODY.findall(xml):
        attributes = dict(_ATTRIBUTE.findall(tag))
        if (name := attributes.get("name")) in roots:
            number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
            for key, target in (("pos", model.body_pos), ("quat", model.body_quat)):
                if key in attributes:
                    target[number] = [float(value) for value in attributes[key].split()]


def pose_names(sight: Sight) -> tuple[str, ...]:
    """What `poses_now` holds: the end effector, the gripper, each object, each goal's place."""
    points = [f"goal_{number}" for number in range(len(sight.goals))]
    named = [f"{name}.{axis}" for name in [*sight.objects, *points] for axis in "xyz"]
    return ("hand.x", "hand.y", "hand.z", "opening", *named)


def poses_now(sight: Sight) -> list[float]:
    """Positions in metres, in the order of `pose_names`."""
    places = [sight.position(name) for name in sight.objects]
    places += [goal_point(sight, goal) for goal in sight.goals]
    return [*sight.hand_position, sight.opening, *np.concatenate(places)]
