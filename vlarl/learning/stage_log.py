"""The scalars of supervised fine-tuning: their names, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlarl.learning.boards import Curves, Trained, boards_of
from vlarl.learning.run_log import RunLog

METRICS = {
    "loss": "mean loss of the samples learned from since the last line, each before its step",
    "learning_rate": "rate of the last step",
    "grad_norm": "mean gradient norm before clipping",
    "samples_per_second": "samples learned from in a second, measuring left out",
    "gpu_memory_bytes": "most memory that rank 0's tensors took on its GPU so far; only on a GPU",
    "held_out_loss": "the same loss on held-out samples, which are not augmented",
    "held_out_nll": "mean negative log-probability of an expert's token, whatever the targets",
    "held_out_accuracy": "share of tokens where the likeliest id, after the expert's own, is right",
    "held_out_l1": "mean distance of the greedy policy's action from the expert's, in [-1, 1]",
    "held_out_bins": "with `/NAME`: the same distance in bins, of one action dimension",
    "held_out_auc": "reward model: how often a positive sample has the higher score",
    "held_out_mm": "pretraining: mean error of a position in millimetres",
    "success_rate": "with `[simulation]`: of greedy episodes; with `/task_N`: of one task's",
}
"""Every scalar of a line, and what it means. With `/NAME`: of one action dimension or position."""

FILE = "metrics.jsonl"


class StageLog:
    """One stage's lines in RUN/metrics.jsonl, and on the run's boards."""

    def __init__(self, run_dir: Path, stage: str, step: int, config: Trained) -> None:
        """Goes on with the stage.

        Args:
            run_dir: the run's folder.
            stage: its table in the configuration.
            step: where it goes on from; its lines of later steps go, to be written again.
            config: the run, whose `[logging]` says which boards.
        """
        self._stage = stage
        self._log = RunLog(
            run_dir / FILE,
            boards_of(run_dir, config),
            Curves("step", folder=stage, prefix=f"{stage}/"),
            keep=lambda line: line["stage"] != stage or line["step"] <= step,
            scalars=self._scalars,
            following=step + 1,
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records scalars after so many steps; once, though a resumed stage may say them again."""
        line = {"stage": self._stage, "step": step, **scalars}
        if self._log.rows[-1:] != [line]:
            self._log.write(line)

    def close(self) -> None:
        """Closes the boards."""
        self._log.close()

    def _scalars(self, line: Mapping[str, Any]) -> dict[str, float]:
        """What a line shows: nothing where it is another stage's."""
        own = line["stage"] == self._stage
        return {n: value for n, value in line.items() if n not in ("stage", "step")} if own else {}
