"""What a run's newest checkpoint holds."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vlarl_trainer.record.progress import Progress, run_checkpoints


def newest(run_dir: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Where the run stands, and its tensors."""
    checkpoints = run_checkpoints(run_dir)
    path = checkpoints.latest()
    assert path is not None, "the run has no checkpoint"
    return checkpoints.load(path)
