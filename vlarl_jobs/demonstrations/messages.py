"""What a worker is told: the job's settings once, then one order after the other. All is JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vlarl.errors import FatalError
from vlarl_env.simulators.libero.scene import Profile
from vlarl_jobs.demonstrations.conventions import Conventions


class SceneError(FatalError):
    """A scene that can't be rendered as it was asked for."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Message):
    """What all orders of a job share."""

    job: Literal["play", "render"]
    """Play the expert's episodes, or render recorded ones."""
    profile: Profile
    """The simulator's profile."""
    suites: dict[str, Path] = {}
    """Suites of our own: name = folder of BDDL files."""
    action_repeat: int = 1
    """Control steps for which each action is held."""
    noise: float = 0.0
    """Standard deviation of what is added to the translation of half of the actions."""
    pace: float = 1.0
    """Share of the full speed at which the expert moves at most."""
    max_actions: int | None = None
    """Length at which an episode is cut; none: the task's own."""
    camera: str = "agentview"
    """The main camera that is rendered."""
    further_cameras: tuple[str, ...] = ()
    """Cameras that are rendered beside it."""
    render_size: int = 256
    """Side of the rendered frame in pixels."""
    crop: tuple[int, int, int, int] | None = None
    """Part of the frame that is kept: top, left, height, width; none: all."""


class PlayOrder(_Message):
    """Play an episode of the expert."""

    suite: str
    index: int
    number: int
    """Of this task's tries."""
    noise_seed: int = 0
    placement_seed: int | None = None
    """Seed of the placement; none: `init_state` is one of the official states."""
    init_state: int | None = None
    part: Path | None = None
    """Where to keep the episode; none: nowhere."""
    keep_failures: bool = False
    """Whether to keep an episode that missed the goal."""


class RenderOrder(_Message):
    """Render a recorded episode."""

    suite: str
    index: int
    file: Path
    demo: str
    conventions: Conventions
    """What the file's actions mean."""
    must_succeed: bool
    """Whether an episode whose states never reach the goal is left out."""
    part: Path
    """Where to keep the frames."""


class Answer(_Message):
    """How an order ended."""

    success: bool = True
    length: int = 0
    """Control steps of a played episode, samples of a rendered one."""
    error: str | None = None
    """Why nothing came of it; none: something did."""
    hopeless: bool = False
    """Whether nothing would come of another try either."""
