"""The job of a worker that renders recorded episodes: what a policy would have seen."""

from __future__ import annotations

import re
from dataclasses import replace

import mujoco
import numpy as np

from vlarl.data.dataset import Frames
from vlarl.images import encode_jpeg
from vlarl_env.errors import BrokenSceneError, NoRoomError
from vlarl_env.simulators.episode import crop_frame
from vlarl_env.simulators.libero.scene import DivergedError, Scene
from vlarl_jobs.demonstrations.episode_files import RenderedEpisode, save_rendered
from vlarl_jobs.demonstrations.episodes import Episode
from vlarl_jobs.demonstrations.experts.expert import goal_point
from vlarl_jobs.demonstrations.experts.scene_view import SceneView
from vlarl_jobs.demonstrations.hdf5 import DemoFileError, read_episode, read_header
from vlarl_jobs.demonstrations.messages import Answer, RenderOrder, SceneError, Settings
from vlarl_jobs.demonstrations.scene_cache import SceneCache, Stage
from vlarl_jobs.demonstrations.steps import PolicySteps, grouped_actions, held_actions

LAST_STATES = 20
"""States at the end of a recording in which its goal is looked for."""

FOLLOWING_STEPS = 10
"""Control steps after its last state in which it is: half a second, for what was let go to fall."""

_BODY = re.compile(r"<body\b([^>]*)>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


class Renderer:
    """Renders episodes, one after the other, in the scene of the task that was asked for last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cameras = (settings.camera, *settings.further_cameras)
        self._stages = SceneCache(settings.suites, settings.profile)

    def do(self, order: str) -> Answer:
        """Renders one episode and keeps it."""
        wanted = RenderOrder.model_validate_json(order)
        try:
            rendered = self.render(wanted)
        except DemoFileError as error:
            return Answer(error=str(error).removeprefix(f"{wanted.file}: "))
        except NoRoomError as error:
            return Answer(error=str(error))
        except (BrokenSceneError, SceneError) as error:
            return Answer(error=str(error), hopeless=True)
        save_rendered(wanted.part, rendered)
        return Answer(length=len(rendered.frames))

    def render(self, wanted: RenderOrder) -> RenderedEpisode:
        """The samples of one demonstration of a task.

        Raises:
            DemoFileError: it lacks something, is of another scene, or misses its goal.
            SceneError: the scene can't be rendered as the settings say.
        """
        file, demo, task = wanted.file, wanted.demo, f"{wanted.suite} task {wanted.index}"
        header, episode = read_header(file), read_episode(file, demo)
        episode = replace(
            episode,
            actions=wanted.conventions.apply(episode.actions),
            expert_actions=wanted.conventions.apply(episode.expert_actions),
        )
        stage = self._stages.of(wanted.suite, wanted.index)
        if episode.states.shape[1] != len(stage.scene.state()):
            raise DemoFileError(
                f"{file}: {demo} has states of {episode.states.shape[1]} numbers, the scene of "
                f"{task} has {len(stage.scene.state())}"
            )
        for camera in self._cameras:
            if camera not in stage.scene.cameras:
                known = ", ".join(sorted(stage.scene.cameras))
                raise SceneError(f"the scene of {task} has no camera {camera!r}, but {known}")
        try:
            _place(stage.scene, episode, demo)
        except ValueError as error:
            raise DemoFileError(f"{file}: {demo} {error}") from error
        if wanted.must_succeed and not episode.seen_to_succeed:
            if not reaches(stage.scene, episode):
                raise DemoFileError(
                    f"{file}: {demo} never reaches the goal of {task}; --keep-failures takes it"
                )
            _place(stage.scene, episode, demo)
        steps = policy_steps(episode, header.action_repeat, self._settings.action_repeat)
        return self._render(stage, episode, steps)

    def close(self) -> None:
        """Frees the scene."""
        self._stages.close()

    def _render(self, stage: Stage, episode: Episode, steps: PolicySteps) -> RenderedEpisode:
        scene, sight = stage.scene, stage.sight
        names = pose_names(sight)
        seen: list[list[bytes]] = [[] for _ in self._cameras]
        poses, proprio = [], []
        for state in episode.states[steps.starts]:
            scene.show(state)
            for camera, frames in zip(self._cameras, seen, strict=True):
                frame = scene.render(camera, self._settings.render_size)
                frames.append(encode_jpeg(crop_frame(frame, self._settings.crop)))
            poses.append(poses_now(sight))
            proprio.append(scene.proprioception())
        table = np.array(poses, dtype=np.float32).reshape(len(poses), len(names))
        main, *further = map(Frames.of, seen)
        return RenderedEpisode(
            frames=main,
            actions=steps.actions,
            poses=table,
            pose_names=names,
            starts=steps.starts.astype(np.int32),
            robot_states=episode.robot_states.astype(np.float32),
            placement_seed=episode.placement_seed,
            further_frames=tuple(further),
            proprio=np.array(proprio, dtype=np.float32).reshape(len(proprio), -1),
        )


def policy_steps(episode: Episode, recorded_repeat: int, repeat: int) -> PolicySteps:
    """The samples of an episode.

    Args:
        episode: The recording.
        recorded_repeat: Control steps for which its actions were held.
        repeat: Control steps for which the policy's will be: the same, or any number where the
            recording chose an action at each control step.
    """
    if recorded_repeat > 1:
        return held_actions(episode.expert_actions, recorded_repeat)
    return grouped_actions(episode.expert_actions, repeat)


def _place(scene: Scene, episode: Episode, demo: str) -> None:
    """Puts the fixtures where they stood.

    A recording that doesn't say is taken for one of OpenVLA's regenerated ones: demo_N was played
    after N + 1 resets of the benchmark's loop, as an evaluation's state N is.

    Raises:
        ValueError: the recording has them nowhere.
    """
    if episode.placement_seed is not None:
        scene.draw_placement(episode.placement_seed)
    else:
        digits = re.search(r"(?<!\d)\d{1,2}$", demo)  # of fifty a task
        scene.draw_official(int(digits[0]) if digits else 0)
    if episode.fixtures is not None:
        place_fixtures(scene, episode.fixtures)


def reaches(scene: Scene, episode: Episode) -> bool:
    """Whether the goal holds in one of an episode's last states, or soon after them: states are
    those before each action, so that the one in which it was reached may not be recorded.
    """
    try:
        for state in episode.states[-LAST_STATES:]:
            scene.set_state(state)
            if scene.succeeded():
                return True
        action = episode.actions[-1].copy()
        for _ in range(FOLLOWING_STEPS):
            scene.control_step(action)
            if scene.succeeded():
                return True
            action[:6] = 0.0
    except DivergedError:
        pass  # a state that no scene can be in
    return False


def place_fixtures(scene: Scene, xml: str) -> None:
    """Puts fixtures where a recorded scene's XML has them: their poses are in no state.

    Raises:
        ValueError: it has them nowhere.
    """
    model = scene.problem.sim.model._model
    roots = {fixture.root_body for fixture in scene.problem.fixtures_dict.values()}
    for tag in _BODY.findall(xml):
        attributes = dict(_ATTRIBUTE.findall(tag))
        if (name := attributes.get("name")) in roots:
            number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
            for key, target in (("pos", model.body_pos), ("quat", model.body_quat)):
                if key in attributes:
                    target[number] = _numbers(attributes[key], len(target[number]))


def _numbers(text: str, count: int) -> list[float]:
    """So many numbers with spaces.

    Raises:
        ValueError: they aren't.
    """
    try:
        numbers = [float(value) for value in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"has a model_file that places a fixture at {text!r}")
    return numbers


def pose_names(sight: SceneView) -> tuple[str, ...]:
    """What `poses_now` holds: the end effector, the gripper, each object, each goal's place."""
    points = [f"goal_{number}" for number in range(len(sight.goals))]
    named = [f"{name}.{axis}" for name in [*sight.objects, *points] for axis in "xyz"]
    return ("hand.x", "hand.y", "hand.z", "opening", *named)


def poses_now(sight: SceneView) -> list[float]:
    """Positions in metres, in the order of `pose_names`."""
    places = [sight.position(name) for name in sight.objects]
    places += [goal_point(sight, goal) for goal in sight.goals]
    return [*sight.hand_position, sight.opening, *np.concatenate(places)]
