"""What a person sees of a stage: a bar on a terminal, and a line at each measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
)

from vlarl.terminal import PlainConsole, clock, styled, text_column


class StageDisplay:
    """A stage's progress on standard output."""

    def __init__(self, stage: str, steps: int, done: int) -> None:
        """done: steps that were taken before."""
        self._console = PlainConsole()
        self._stage = stage
        self._steps = steps
        self._before = done
        self._started = time.monotonic()
        self._bar = Progress(
            text_column("{task.description}", "bold"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            text_column("{task.fields[news]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=steps, completed=done, news="starting")
        self._bar.start()

    def step(self, done: int, loss: float) -> None:
        """Moves the bar."""
        news = f"loss {loss:.3f}  {self._remaining(done)}"
        self._bar.update(self._task, completed=done, news=news)

    def line(self, done: int, scalars: Mapping[str, float]) -> None:
        """Prints a measurement's line."""
        measured = [
            f"{label} {scalars[name]:.{digits}f}"
            for name, label, digits in (
                ("held_out_loss", "held-out loss", 3),
                ("held_out_accuracy", "accuracy", 3),
                ("held_out_l1", "L1", 4),
                ("held_out_auc", "AUC", 3),
                ("held_out_mm", "error in mm", 2),
            )
            if name in scalars
        ]
        if not measured and done != self._steps:
            return
        self._console.print(
            styled(
                (f"{self._stage} {done}/{self._steps}", "bold"),
                f"  loss {scalars['loss']:.3f}  {'  '.join(measured)}  samples/s "
                f"{scalars['samples_per_second']:.0f}  {self._remaining(done)}",
            )
        )

    def success(self, done: int, scalars: Mapping[str, float]) -> None:
        """Prints what an evaluation in the simulator came to."""
        by_task = [
            f"{name.removeprefix('success_rate/task_')}: {rate:.0%}"
            for name, rate in scalars.items()
            if "/" in name
        ]
        tasks = f"  (task {', '.join(by_task)})" if len(by_task) > 1 else ""
        news = f"success in the simulator {scalars['success_rate']:.0%}{tasks}"
        self._console.print(styled((f"{self._stage} {done}/{self._steps}", "bold"), f"  {news}"))

    def close(self) -> None:
        """Gives the terminal back."""
        self._bar.stop()

    def _remaining(self, done: int) -> str:
        a_step = (time.monotonic() - self._started) / max(1, done - self._before)
        return f"ETA {clock(a_step * (self._steps - done))}"
