"""A robot's control loop: a frame, an action, at a fixed rate, and what became of the time.

    python examples/control_loop.py --address HOST:50051 --rate 5 --instruction "lift the bowl"

A step has one period. Whatever has no answer by then is missed: the robot goes on with what it
was told before, and the next frame is a fresh one. A policy that answers several control steps at
once is asked when they have been played, or sooner (`--replan-after`). Cameras and arm are
stand-ins, moving stripes or a folder of pictures; `camera`, `arm` and `move` are where a robot's
own code goes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from grpc import StatusCode
from numpy.typing import NDArray
from PIL import Image

from vlarl import ChunkedPolicy, Observation, PolicyClient, PolicyError
from vlarl.images import encode_jpeg
from vlarl.policy.v1.policy_pb2 import GetPolicyResponse

Frame = NDArray[np.uint8]
"""uint8[height, width, 3]."""
FRAME_SIZE = 256
UNHURRIED_STEPS = 10
SUFFIXES = {".jpg", ".jpeg", ".png"}


def camera(folder: Path | None) -> Iterator[Frame]:
    """Frames for ever; without a folder of pictures they are drawn."""
    return stripes() if folder is None else pictures(folder)


def stripes() -> Iterator[Frame]:
    """Stripes that move."""
    ramp = np.arange(FRAME_SIZE)[:, None] + np.arange(FRAME_SIZE)
    for shift in itertools.count(step=4):
        grey = ((ramp + shift) % FRAME_SIZE).astype(np.uint8)
        yield np.stack([grey, np.roll(grey, 85, 1), np.roll(grey, 170, 1)], axis=2)


def pictures(folder: Path) -> Iterator[Frame]:
    """The folder's pictures in the order of their names, again and again."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} has no picture ({', '.join(sorted(SUFFIXES))})")
    for path in itertools.cycle(paths):
        yield np.asarray(Image.open(path).convert("RGB"))


def arm(numbers: int) -> NDArray[np.float32]:
    """The arm's proprioception, in the dataset's units; of LIBERO position, axis-angle, fingers."""
    return np.zeros(numbers, np.float32)


def move(values: NDArray[np.float32]) -> None:
    """Where the robot would be told: seven numbers, translation, rotation, gripper."""


@dataclass
class Budget:
    """Where a period's time went, in seconds, step by step."""

    period: float
    camera: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    policy: list[float] = field(default_factory=list)
    """Of the requests that were answered."""
    whole: list[float] = field(default_factory=list)
    missed: int = 0

    def lines(self) -> Iterator[str]:
        """The table, in milliseconds."""
        yield f"{'ms':12}{'p50':>9}{'p95':>9}{'p99':>9}{'largest':>9}"
        for name in ("camera", "encode", "policy", "whole"):
            if seconds := getattr(self, name):
                shown = [*np.percentile(seconds, [50, 95, 99]), max(seconds)]
                yield f"{name:12}" + "".join(f"{1000 * value:9.1f}" for value in shown)
        left = self.period - float(np.percentile(self.whole, 95))
        yield f"left of {1000 * self.period:.0f} ms at p95: {1000 * left:.1f} ms"
        steps = len(self.whole)
        yield f"deadlines missed: {self.missed} of {steps} ({100 * self.missed / steps:.1f} %)"


class Robot:
    """What the policy has to be shown: of each of its cameras a picture, and the arm."""

    def __init__(self, policy: GetPolicyResponse, instruction: str, folder: Path | None) -> None:
        # A server that is older names no cameras: it has one.
        names = list(policy.cameras) or ["agentview"]
        self._cameras = {name: camera(folder) for name in names}
        self._instruction = instruction
        self._proprio = policy.proprio

    def frames(self) -> dict[str, Frame]:
        """A fresh one of each camera, the main one's first."""
        return {name: next(frames) for name, frames in self._cameras.items()}

    def observation(self, frames: dict[str, Frame]) -> Observation:
        """The frames as the policy takes them."""
        # JPEG is several times smaller than PNG, and what the policy was trained on.
        main, *further = ((name, encode_jpeg(frame)) for name, frame in frames.items())
        proprio = arm(self._proprio) if self._proprio else None
        return Observation(main[1], self._instruction, dict(further), proprio)


def in_time(
    policy: ChunkedPolicy, seen: Observation, unnorm_key: str | None, seconds: float
) -> NDArray[np.float32] | None:
    """The next control step, or None where there is none within these seconds."""
    if seconds <= 0 and policy.asks:
        return None
    try:
        return policy.act(
            seen.image,
            seen.instruction,
            images=seen.images,
            proprio=seen.proprio,
            unnorm_key=unnorm_key,
            timeout_seconds=seconds,
        )
    except PolicyError as error:
        # A server that restarts is waited for in the same rhythm; what is refused stays refused.
        if error.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE):
            return None
        raise


def sustainable(policy: PolicyClient, robot: Robot, unnorm_key: str | None) -> str:
    """What rate could be kept: measured by steps that have all the time they want. Their answers
    move nothing, as the robot's time is over.
    """
    seconds = []
    for _ in range(UNHURRIED_STEPS):
        began = time.perf_counter()
        policy.predict_batch([robot.observation(robot.frames())], unnorm_key=unnorm_key)
        seconds.append(time.perf_counter() - began)
    rate = math.floor(100 / max(seconds)) / 100
    return f"without haste a step takes up to {1000 * max(seconds):.1f} ms: --rate {rate:g} is kept"


def control_loop(
    instruction: Annotated[str, typer.Option(help="The task in words.")],
    address: Annotated[str, typer.Option(help="Policy server.")] = "127.0.0.1:50051",
    token_file: Annotated[Path | None, typer.Option(help="The client's bearer token.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust.")] = None,
    rate: Annotated[float, typer.Option(help="Control steps a second.", min=0.1)] = 5.0,
    steps: Annotated[int, typer.Option(help="Control steps until the end.", min=1)] = 100,
    replan_after: Annotated[
        int, typer.Option(help="Control steps of an answer that are played; 0: all.", min=0)
    ] = 0,
    unnorm_key: Annotated[str, typer.Option(help="Dataset whose units are wanted.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for the camera.", file_okay=False)
    ] = None,
) -> None:
    """Move at a fixed rate, and print where the time went; where that was too fast,
    the rate that could be kept.
    """
    period = 1 / rate
    budget = Budget(period)
    with PolicyClient(address, token_file=token_file, tls_ca=tls_ca) as client:
        robot = Robot(client.get_policy(), instruction, images)
        policy = ChunkedPolicy(client, replan_after=replan_after or None)
        # Connects, and fails here if it can't work at all, with more patience than a period.
        seen = robot.observation(robot.frames())
        client.predict_batch([seen], unnorm_key=unnorm_key or None)
        tick = time.perf_counter()
        for _ in range(steps):
            time.sleep(max(0.0, tick - time.perf_counter()))
            began = time.perf_counter()
            if asks := policy.asks:
                frames = robot.frames()
                budget.camera.append(time.perf_counter() - began)
                seen = robot.observation(frames)
                budget.encode.append(time.perf_counter() - began - budget.camera[-1])
            asked = time.perf_counter()
            values = in_time(policy, seen, unnorm_key or None, began + period - asked)
            ended = time.perf_counter()
            if values is not None:
                move(values)
                if asks:
                    budget.policy.append(ended - asked)
            budget.missed += values is None or ended - began > period
            budget.whole.append(ended - began)
            # A late step shortens no later one: the rhythm goes on with the next whole period.
            tick += period * max(1, math.ceil((ended - tick) / period))
        for line in budget.lines():
            typer.echo(line)
        if budget.missed:
            typer.echo(sustainable(client, robot, unnorm_key or None))


if __name__ == "__main__":
    try:
        typer.run(control_loop)
    except (PolicyError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
