"""What a person sees: one line an iteration, and on a terminal a bar that says what goes on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
)
from rich.table import Table

from vlarl.invocation import invocation
from vlarl.terminal import PlainConsole, Whole, clock, styled, text_column
from vlarl.trainer.v1 import trainer_pb2
from vlarl_trainer.record.best import Scored
from vlarl_trainer.record.evaluation import Evaluation, TaskScore
from vlarl_trainer.record.progress import Rollback

_RECENT = 10


class Display:
    """A run's progress on standard output."""

    def __init__(self, run_id: str, iterations: int, done: int) -> None:
        """done: iterations of the run that are completed already."""
        self._console = PlainConsole()
        self._iterations = iterations
        self._durations: list[float] = []
        columns = (
            text_column("{task.description}", "bold"),
            BarColumn(),
            MofNCompleteColumn(),
            text_column("{task.fields[phase]}  {task.fields[remaining]}"),
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
        no_kl = "warm-up" if "value_loss" in metrics else "–"
        kl = f"{metrics['approximate_kl']:.2g}" if "approximate_kl" in metrics else no_kl
        stopped = f" (stopped at {metrics['largest_kl']:.2g})" if metrics.get("kl_stopped") else ""
        phases = ", ".join(
            f"{name} {metrics[f'seconds_{name}']:.1f}"
            for name in ("rollout", "learning", "checkpoint", "publish")
        )
        self._console.print(
            styled(
                (f"iteration {done}/{self._iterations}", "bold"),
                f"  success {metrics['success_rate']:.2f}  return {metrics['episode_return']:.3f}  "
                f"length {metrics['episode_actions']:.1f}  KL {kl}{stopped}  "
                f"entropy {_number(metrics, 'entropy', '.3f')}  "
                f"gap {_number(metrics, 'logprob_gap', '.1e')}  {_groups(metrics)}"
                f"seconds {metrics['seconds_iteration']:.1f} ({phases})  {remaining}",
            )
        )
        self._bar.update(self._task, completed=done, remaining=remaining)

    def evaluation_begins(self, episodes: int) -> None:
        """Says so where no bar does: nothing else is printed for as long as it takes."""
        if self._bar.disable:
            self._console.print(f"a greedy evaluation begins, of {episodes} episodes")

    def evaluation(self, evaluation: Evaluation) -> None:
        """Prints success by task."""
        self._console.print(
            f"greedy evaluation of version {evaluation.policy_version}, "
            f"after {evaluation.iteration} iterations ({evaluation.env_steps} control steps)"
        )
        self._console.print(Whole(score_table(evaluation)))
        if evaluation.missing:
            self._console.print(styled((given_up(evaluation), "red")))

    def stopped(self, enough: Scored, share: float) -> None:
        """Says why the run ends before its last iteration."""
        self._console.print(
            f"the run ends: greedy success of {enough} reaches trainer.stop_at_success = "
            f"{share:g}; with another value, --resume goes on"
        )

    def rolled_back(self, rollback: Rollback, best: Scored, times: int) -> None:
        """Says where the run went back to, and why."""
        lie = "evaluations in a row lie" if times > 1 else "evaluation lies"
        self._console.print(
            f"the run goes back: {times} {lie} below the best, {best}, which is version "
            f"{rollback.version} now; the policy's learning rate is multiplied by "
            f"{rollback.rate_scale:g} from here on (trainer.rollback)"
        )

    def finish(self, run_dir: Path) -> None:
        """Says where to look."""
        self.close()
        board = run_dir / "tensorboard"
        shown = f"{invocation('tensorboard')} --logdir {shlex.quote(str(board))}; "
        self._console.print(
            f"run: {run_dir}  (metrics.jsonl, checkpoints/; {shown if board.exists() else ''}"
            f"{invocation()} report {shlex.quote(str(run_dir))})"
        )

    def close(self) -> None:
        """Gives the terminal back."""
        self._bar.stop()


def _number(metrics: Mapping[str, float], name: str, form: str) -> str:
    """A metric; a dash where an iteration has none, for it had nothing to learn from."""
    return f"{metrics[name]:{form}}" if name in metrics else "–"


def _groups(metrics: Mapping[str, float]) -> str:
    """How many of an iteration's groups were kept; empty where there are no groups."""
    if "groups_kept" not in metrics:
        return ""
    names = ("groups_kept", "groups_dropped_success", "groups_dropped_failure", "groups_void")
    ordered = sum(metrics[name] for name in names if name in metrics)
    return f"groups kept {metrics['groups_kept']:.0f} of {ordered:.0f}  "


def given_up(evaluation: Evaluation) -> str:
    """How many episodes were, in words."""
    missing = evaluation.missing
    words = "1 episode was" if missing == 1 else f"{missing} episodes were"
    return f"{words} given up and count{'s' if missing == 1 else ''} as failed"


def score_table(evaluation: Evaluation) -> Table:
    """Success by task and in total."""
    table = Table("task", "instruction", "success", "95 % interval", "episodes", "mean length")
    for task, score in evaluation.tasks.items():
        table.add_row(str(task), *_cells(score))
    table.add_section()
    table.add_row("", *_cells(evaluation.total))
    return table


def _cells(score: TaskScore) -> tuple[str, str, str, str, str]:
    low, high = score.interval
    return (
        score.instruction,
        f"{score.success_rate:.1%}",
        f"{low:.1%} to {high:.1%}",
        str(score.episodes) + (f" ({score.missing} given up)" if score.missing else ""),
        f"{score.mean_actions:.1f}",
    )
