"""Where a training's scalars are looked at: TensorBoard, and wandb where a run wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from vlarl.config import RewardModelConfig, RunConfig, SftConfig
from vlarl.learning.wandb_run import WandbRun, wandb_mode

Trained = RunConfig | SftConfig | RewardModelConfig


@dataclass(frozen=True)
class Curves:
    """Scalars over one axis."""

    axis: str
    """What they stand over: a key of their lines."""
    folder: str = ""
    """TensorBoard's, below RUN/tensorboard."""
    prefix: str = ""
    """What sets their names apart where all of a run's scalars are in one place."""


@dataclass(frozen=True)
class Past:
    """What curves are gone on from."""

    following: int
    """The place on their axis that is shown next."""
    shown: Sequence[tuple[int, Mapping[str, float]]]
    """Places before it, with their scalars."""


class Board(Protocol):
    """Shows scalars, beside the file that keeps them."""

    def begin(self, curves: Curves, past: Past) -> None:
        """Goes on with curves."""

    def show(self, curves: Curves, at: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars at a place of the axis, where they are seen at once."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Event files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[Curves, SummaryWriter] = {}

    def begin(self, curves: Curves, past: Past) -> None:
        """Forgets what stands from the next place on."""
        self._writers[curves] = _writer(self._folder / curves.folder, past.following)

    def show(self, curves: Curves, at: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars; curves that nobody began lose nothing."""
        if curves not in self._writers:
            self._writers[curves] = _writer(self._folder / curves.folder)
        writer = self._writers[curves]
        for name, value in scalars.items():
            writer.add_scalar(name, value, at)
        writer.flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()


class WandbBoard:
    """A run of wandb. It forgets nothing: a place that is shown again keeps its first scalars."""

    def __init__(self, run: WandbRun) -> None:
        self._run = run

    def begin(self, curves: Curves, past: Past) -> None:
        """Adds what it lacks: a crash came in between, or the run had no wandb so far."""
        for at, scalars in past.shown:
            self.show(curves, at, scalars)

    def show(self, curves: Curves, at: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars, once."""
        named = {f"{curves.prefix}{name}": value for name, value in scalars.items()}
        self._run.log(f"{curves.prefix}{curves.axis}", at, named)

    def close(self) -> None:
        """Ends wandb's process."""
        self._run.close()


def _writer(folder: Path, following: int | None = None) -> SummaryWriter:
    return SummaryWriter(str(folder), purge_step=following)


def boards_of(run_dir: Path, config: Trained) -> list[Board]:
    """Those that the run's `[logging]` wants."""
    boards: list[Board] = []
    if config.logging.tensorboard:
        boards.append(TensorBoard(run_dir / "tensorboard"))
    if wandb_mode(config.logging) != "off":
        boards.append(WandbBoard(WandbRun(run_dir, config)))
    return boards
