"""Where a stage of fine-tuning stands between two steps, and its checkpoints.

    RUN/checkpoints/training/step-0000400/state.json           `StageProgress`
                                          tensors.safetensors  weights and AdamW's moments

The newest are kept, and the one with the lowest held-out loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlarl.config import Section
from vlarl.config.resuming import check_terms
from vlarl.learning.checkpoints import CheckpointFolder, ResumeError


@dataclass(frozen=True)
class StageProgress:
    """Where a stage stands between two steps."""

    base_digest: str
    """SHA-256 of the weights that the stage began with."""
    samples: int
    """Samples that it learns from."""
    step: int = 0
    """Steps done, which is the index of the next."""
    best_step: int = 0
    """Steps after which the held-out loss was lowest; without held-out samples, the last."""
    best_loss: float | None = None
    """That loss."""
    terms: dict[str, Any] = field(default_factory=dict)
    """The configuration's fixed keys, and digests of what it learns from; {}: an earlier version
    wrote the checkpoint."""

    def after(self, step: int, held_out_loss: float | None) -> StageProgress:
        """The stage's place after a measurement."""
        if held_out_loss is None:
            return replace(self, step=step, best_step=step)
        if self.best_loss is None or held_out_loss < self.best_loss:
            return replace(self, step=step, best_step=step, best_loss=held_out_loss)
        return replace(self, step=step)


def stage_checkpoints(directory: Path) -> CheckpointFolder[StageProgress]:
    """The checkpoints of a stage, by the folder that holds them."""
    return CheckpointFolder(directory, "step-", 7, StageProgress)


def load_stage(
    directory: Path, fresh: StageProgress, root: type[Section]
) -> tuple[StageProgress, dict[str, Tensor]]:
    """The newest checkpoint; where there is none, `fresh` and no tensors.

    Args:
        directory: of the stage's checkpoints.
        fresh: the stage before its first step, as it is configured now.
        root: what kind of run it belongs to.

    Raises:
        ResumeError: it is broken, or of other weights or demonstrations than `fresh`.
        ConfigError: a fixed key of the configuration had another value.
    """
    checkpoints = stage_checkpoints(directory)
    path = checkpoints.latest()
    if path is None:
        return fresh, {}
    progress, tensors = checkpoints.load(path)
    if (progress.base_digest, progress.samples) != (fresh.base_digest, fresh.samples):
        raise ResumeError(
            f"checkpoint {path} began with weights {progress.base_digest[:12]} and learns "
            f"from {progress.samples} samples, this run has {fresh.base_digest[:12]} and "
            f"{fresh.samples}: go on with the same checkpoint and datasets"
        )
    check_terms(root, f"checkpoint {path}", progress.terms, fresh.terms)
    return replace(progress, terms=fresh.terms), tensors


def stage_weights(directory: Path, step: int) -> dict[str, Tensor]:
    """The trained tensors after so many steps, from their checkpoint.

    Raises:
        ResumeError: it isn't there.
    """
    checkpoints = stage_checkpoints(directory)
    _, tensors = checkpoints.load(checkpoints.path(step))
    prefix = "weights."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
