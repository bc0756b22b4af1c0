"""What a person sees of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn

from vlarl.config import RunConfig
from vlarl.env.v1 import env_pb2
from vlarl.terminal import PlainConsole, Whole, clock, styled, text_column
from vlarl_trainer.record.console import given_up, score_table
from vlarl_trainer.record.evaluation import EpisodeResult, Evaluation


class EvaluationDisplay:
    """An evaluation's progress on standard output."""

    def __init__(
        self,
        tasks: Sequence[env_pb2.TaskDescription],
        config: RunConfig,
        out: Path,
        protocol: str,
        again: str,
    ) -> None:
        """tasks: what is evaluated. out: where the results go. protocol: which, in words. again:
        what goes on with it.
        """
        self._console = PlainConsole()
        self._out = out
        self._again = again
        self._terminal = self._console.is_terminal
        env = config.env
        own = config.tasks.max_actions * env.action_repeat
        limit = own or max(task.max_control_steps for task in tasks)
        self._console.print(
            f"{config.tasks.suite}: {len(tasks)} tasks, {config.evaluation.episodes_per_task} "
            f"official initial states each, greedy, at most {limit} control steps after "
            f"{env.settle_steps} to settle, {env.profile} simulator\nprotocol: {protocol}"
        )
        self._bar = Progress(
            text_column("{task.description}", "bold"),
            BarColumn(),
            MofNCompleteColumn(),
            text_column("success {task.fields[success]}  {task.fields[remaining]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._terminal,
        )
        self._task: TaskID | None = None
        self._successes = self._episodes = 0
        self._wanted = 0
        self._started = time.monotonic()

    def start(self, done: int, total: int) -> None:
        """The services serve; `done` of the episodes had ended before."""
        if done:
            self._console.print(f"{done} of {total} episodes are done already")
        self._wanted, self._started = total - done, time.monotonic()
        self._task = self._bar.add_task(
            "episodes", total=total, completed=done, success="-", remaining=""
        )
        self._bar.start()

    def episode(self, result: EpisodeResult) -> None:
        """Counts an episode."""
        self._successes += result.success
        self._episodes += 1
        # Over all episodes: they end in bursts, as many at a time as there are simulators.
        pace = (time.monotonic() - self._started) / self._episodes
        remaining = f"ETA {clock(pace * (self._wanted - self._episodes))}"
        if self._task is not None:
            share = f"{self._successes / self._episodes:.0%}"
            self._bar.update(self._task, advance=1, success=share, remaining=remaining)
        if not self._terminal:
            end = "success" if result.success else "failure"
            self._console.print(
                f"episode {self._episodes}/{self._wanted}  task {result.task}  initial state "
                f"{result.init_state}  {end} after {result.actions} actions  {remaining}"
            )

    def finish(self, evaluation: Evaluation) -> None:
        """Prints the score, and says where to look."""
        self.close()
        self._console.print(Whole(score_table(evaluation)))
        if evaluation.missing:
            again = f"; {self._again} tries them again"
            self._console.print(styled((given_up(evaluation), "red"), again))
        self._console.print(f"results: {self._out}  (evaluation.json, episodes.jsonl)")

    def close(self) -> None:
        """Gives the terminal back."""
        self._bar.stop()
