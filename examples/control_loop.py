"""A robot's control loop: a frame, an action, at a fixed rate, and what became of the time.

    python examples/control_loop.py --address HOST:50051 --rate 5 --instruction "lift the bowl"

A step has one period. Whatever has no answer by then is missed: the robot goes on with what it
was told before, and the next frame is a fresh one. The camera is a stand-in, moving stripes or a
folder of pictures; `camera` and `move` are where a robot's own code goes.
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

from vlarl import Action, PolicyClient, PolicyError
from vlarl.images import encode_jpeg

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


def in_time(
    policy: PolicyClient, encoded: bytes, instruction: str, unnorm_key: str | None, seconds: float
) -> Action | None:
    """The policy's answer, or None where there is none within these seconds."""
    if seconds <= 0:
        return None
    try:
        return policy.predict(encoded, instruction, unnorm_key=unnorm_key, timeout_seconds=seconds)
    except PolicyError as error:
        # A server that restarts is waited for in the same rhythm; what is refused stays refused.
        if error.code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE):
            return None
        raise


def sustainable(
    policy: PolicyClient, frames: Iterator[Frame], instruction: str, unnorm_key: str | None
) -> str:
    """What rate could be kept: measured by steps that have all the time they want. Their answers
    move nothing, as the robot's time is over.
    """
    seconds = []
    for _ in range(UNHURRIED_STEPS):
        began = time.perf_counter()
        policy.predict(encode_jpeg(next(frames)), instruction, unnorm_key=unnorm_key)
        seconds.append(time.perf_counter() - began)
    rate = math.floor(100 / max(seconds)) / 100
    return f"without haste a step takes up to {1000 * max(seconds):.1f} ms: --rate {rate:g} is kept"


def control_loop(
    instruction: Annotated[str, typer.Option(help="The task in words.")],
    address: Annotated[str, typer.Option(help="Policy server.")] = "127.0.0.1:50051",
    token_file: Annotated[Path | None, typer.Option(help="The client's bearer token.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust.")] = None,
    rate: Annotated[float, typer.Option(help="Actions a second.", min=0.1)] = 5.0,
    steps: Annotated[int, typer.Option(help="Actions until the end.", min=1)] = 100,
    unnorm_key: Annotated[str, typer.Option(help="Dataset whose units are wanted.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for the camera.", file_okay=False)
    ] = None,
) -> None:
    """Ask for actions at a fixed rate, and print where the time went; where that was too fast,
    the rate that could be kept.
    """
    period = 1 / rate
    budget = Budget(period)
    frames = camera(images)
    with PolicyClient(address, token_file=token_file, tls_ca=tls_ca) as policy:
        # Connects, and fails here if it can't work at all, with more patience than a period.
        policy.predict(encode_jpeg(next(frames)), instruction, unnorm_key=unnorm_key or None)
        tick = time.perf_counter()
        for _ in range(steps):
            time.sleep(max(0.0, tick - time.perf_counter()))
            began = time.perf_counter()
            frame = next(frames)
            seen = time.perf_counter()
            # JPEG is several times smaller than PNG, and what the policy was trained on.
            encoded = encode_jpeg(frame)
            asked = time.perf_counter()
            action = in_time(
                policy, encoded, instruction, unnorm_key or None, began + period - asked
            )
            ended = time.perf_counter()
            if action is not None:
                move(action.values)
                budget.policy.append(ended - asked)
            budget.missed += action is None or ended - began > period
            budget.camera.append(seen - began)
            budget.encode.append(asked - seen)
            budget.whole.append(ended - began)
            # A late step shortens no later one: the rhythm goes on with the next whole period.
            tick += period * max(1, math.ceil((ended - tick) / period))
        for line in budget.lines():
            typer.echo(line)
        if budget.missed:
            typer.echo(sustainable(policy, frames, instruction, unnorm_key or None))


if __name__ == "__main__":
    try:
        typer.run(control_loop)
    except (PolicyError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
