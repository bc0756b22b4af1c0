"""What a person sees: one line an iteration, and on a terminal a bar that says what goes on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from services.trainer.evaluation import Evaluation, TaskScore, wilson_interval
from vlarl.trainer.v1 import trainer_pb2

_RECENT = 10


class Display:
    """A run's progress on standard output."""

    def __init__(self, run_id: str, iterations: int, done: int) -> None:
        """done: iterations of the run that are completed already."""
        self._console = Console(highlight=False, soft_wrap=True)
        self._iterations = iterations
        self._durations: list[float] = []
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]}  {task.fields[remaining]}"),
        )
        terminal = self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, disable=not terminal)
        self._task = self._bar.add_task(
            run_id, total=iterations, completed=done, phase="starting", remaining=""
        )
        self._bar.start()

    def phase(self, phase: str) -> None:
        """Says what goes on."""
        self._bar.update(self._task, phase=phase)

    def iteration(self, iteration: trainer_pb2.Iteration) -> None:
        """Prints a completed iteration's line."""
        metrics = iteration.metrics
        done = iteration.iteration + 1
        self._durations = [*self._durations, metrics["seconds_iteration"]][-_RECENT:]
        left = sum(self._durations) / len(self._durations) * (self._iterations - done)
        remaining = f"ETA {clock(left)}"
        kl = f"{metrics['approximate_kl']:.2g}" if "approximate_kl" in metrics else "warm-up"
        stopped = " (stopped)" if metrics.get("kl_stopped") else ""
        phases = ", ".join(
            f"{name} {metrics[f'seconds_{name}']:.1f}"
            for name in ("rollout", "learning", "checkpoint", "publish")
        )
        self._console.print(
            f"[bold]iteration {done}/{self._iterations}[/]  "
            f"success {metrics['success_rate']:.2f}  return {metrics['episode_return']:.3f}  "
            f"length {metrics['episode_actions']:.1f}  KL {kl}{stopped}  "
            f"entropy {metrics['entropy']:.3f}  gap {metrics['logprob_gap']:.1e}  "
            f"seconds {metrics['seconds_iteration']:.1f} ({phases})  {remaining}"
        )
        self._bar.update(self._task, completed=done, remaining=remaining)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Prints success by task."""
        table = Table("task", "instruction", "success", "95 % interval", "episodes")
        for task, score in evaluation.tasks.items():
            table.add_row(str(task), *_cells(score))
        table.add_section()
        table.add_row("", *_cells(evaluation.total))
        self._console.print(
            f"greedy evaluation of version {evaluation.policy_version}, "
            f"after {evaluation.iteration} iterations"
        )
        self._console.print(table)
        if evaluation.missing:
            self._console.print(f"{evaluation.missing} episodes were given up and don't count")

    def finish(self, run_dir: Path) -> None:
        """Says where to look."""
        self.close()
        self._console.print(
            f"run: {run_dir}  (metrics.jsonl, checkpoints/, tensorboard --logdir "
            f"{run_dir / 'tensorboard'})"
        )

    def close(self) -> None:
        """Gives the terminal back."""
        self._bar.stop()


def _cells(score: TaskScore) -> tuple[str, str, str, str]:
    low, high = wilson_interval(score.successes, score.episodes)
    rate = score.successes / max(1, score.episodes)
    return score.instruction, f"{rate:.1%}", f"{low:.1%} to {high:.1%}", str(score.episodes)


def clock(seconds: float) -> str:
    """A duration as people write it: 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
