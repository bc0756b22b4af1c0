"""Where a run stands between two iterations, and its checkpoints.

    RUN/checkpoints/iteration-00012/state.json            `Progress`
                                    tensors.safetensors   factors, critic, both optimizers

What all checkpoints have in common is in vlarl/learning/checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlarl.learning.checkpoints import CheckpointFolder


@dataclass(frozen=True)
class Rollback:
    """A return to an earlier policy."""

    iteration: int
    """Iterations completed when it came."""
    from_version: int
    """Policy version that was given up."""
    to_iteration: int
    """Iterations after which the policy was taken up again."""
    to_version: int
    """Policy version that it was then."""
    version: int
    """Policy version that it is now."""
    rate_scale: float
    """What the policy's learning rate is multiplied by from there on."""


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
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """Each `Rollback` so far, as JSON has it."""

    @property
    def rate_scale(self) -> float:
        """What the policy's learning rate is multiplied by."""
        return float(self.rollbacks[-1]["rate_scale"]) if self.rollbacks else 1.0

    @property
    def first_version(self) -> int:
        """The first policy version after the last return: older ones are of what was given up."""
        return int(self.rollbacks[-1]["version"]) if self.rollbacks else 0

    def rolled_back(self, rollback: Rollback) -> Progress:
        """The run's place after a return: iterations, steps and the curriculum go on."""
        rollbacks = [*self.rollbacks, asdict(rollback)]
        return replace(self, version=rollback.version, rollbacks=rollbacks)


def run_checkpoints(run_dir: Path) -> CheckpointFolder[Progress]:
    """The checkpoints of a run."""
    return CheckpointFolder(run_dir / "checkpoints", "iteration-", 5, Progress)


def factors_in(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The policy's factors among a checkpoint's tensors: layer to (A [rank, in], B [out, rank])."""
    firsts = [name for name in tensors if name.startswith("policy.") and name.endswith(".A")]
    layers = [name.removeprefix("policy.").removesuffix(".A") for name in firsts]
    return {layer: (tensors[f"policy.{layer}.A"], tensors[f"policy.{layer}.B"]) for layer in layers}
