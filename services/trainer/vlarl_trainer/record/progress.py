"""Where a run stands between two iterations, and its checkpoints.

    RUN/checkpoints/iteration-00012/state.json            `Progress`
                                    tensors.safetensors   factors, critic, both optimizers

What all checkpoints have in common is in vlarl/learning/checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlarl.learning.checkpoints import CheckpointFolder


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two iterations."""

    run_id: str
    base_digest: str
    """SHA-256 of the base checkpoint that the factors belong to."""
    iteration: int = 0
    """Iterations completed, which is the index of the next."""
    version: int = 1
    """Policy version that the factors are. Version 1 is the base policy as this run serves it."""
    acted: int = 1
    """Policy version that acted in the last iteration."""
    env_steps: int = 0
    """Control steps really taken since the run began."""
    learned: list[str] = field(default_factory=list)
    """Episodes that the last iteration learned from."""
    success: dict[str, list[bool]] = field(default_factory=dict)
    """The curriculum's memory: recent outcomes of each task."""
    tasks_ahead: dict[str, list[int]] = field(default_factory=dict)
    """By iteration, the tasks of batches that were ordered ahead (`trainer.staleness`)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last iteration's metrics."""
    terms: dict[str, Any] = field(default_factory=dict)
    """The configuration's fixed keys, without which the tensors mean nothing; {}: an earlier
    version wrote the checkpoint."""


def run_checkpoints(run_dir: Path) -> CheckpointFolder[Progress]:
    """The checkpoints of a run."""
    return CheckpointFolder(run_dir / "checkpoints", "iteration-", 5, Progress)


def factors_in(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The policy's factors among a checkpoint's tensors: layer to (A [rank, in], B [out, rank])."""
    firsts = [name for name in tensors if name.startswith("policy.") and name.endswith(".A")]
    layers = [name.removeprefix("policy.").removesuffix(".A") for name in firsts]
    return {layer: (tensors[f"policy.{layer}.A"], tensors[f"policy.{layer}.B"]) for layer in layers}
