"""The scalars of supervised fine-tuning: their names, and the two places they go to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

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
    """One stage's lines in RUN/metrics.jsonl, and its TensorBoard."""

    def __init__(self, run_dir: Path, stage: str, step: int) -> None:
        """step: where the stage goes on from; its lines of later steps go, to be written again."""
        self._path = run_dir / FILE
        self._stage = stage
        self._last = self._forget_after(step)
        self._board = SummaryWriter(str(run_dir / "tensorboard" / stage), purge_step=step + 1)

    def _forget_after(self, step: int) -> dict[str, Any]:
        """Returns the last line that stays; {} if none does."""
        kept = [
            line
            for line in read_lines(self._path)
            if line["stage"] != self._stage or line["step"] <= step
        ]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(self._path)
        return kept[-1] if kept else {}

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records scalars after so many steps; once, though a resumed stage may say them again."""
        line = {"stage": self._stage, "step": step, **scalars}
        if line == self._last:
            return
        self._last = line
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._board.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        # A crash may have cut the last line short.
        if line.endswith("}"):
            yield json.loads(line)
