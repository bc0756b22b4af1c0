"""Checkpoints: what a run needs to go on, in files that hold no code.

    RUN/checkpoints/iteration-00012/state.json            where the run stands
                                    tensors.safetensors   factors, critic, both optimizers, whole

A checkpoint is written aside, forced to disk and renamed, so a folder under its final name is
complete. Tensors are gathered: a run resumes at any world size.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlarl.learning.checkpoints import ResumeError, read_state, write_state

_PREFIX = "iteration-"


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
    metrics: dict[str, float] = field(default_factory=dict)
    """The last iteration's metrics."""
    terms: dict[str, Any] = field(default_factory=dict)
    """The configuration's fixed keys, without which the tensors mean nothing; {}: an earlier
    version wrote the checkpoint."""


def save_checkpoint(
    directory: Path, progress: Progress, tensors: dict[str, Tensor], keep: int
) -> Path:
    """Writes a checkpoint durably, then removes all but the newest `keep`.

    Returns:
        Its folder.
    """
    final = directory / f"{_PREFIX}{progress.iteration:05d}"
    # What is there already comes from an earlier run of this very iteration, not acknowledged.
    write_state(final, asdict(progress), tensors)
    for old in _complete(directory)[:-keep]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = _complete(directory)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Reads a checkpoint.

    Raises:
        ResumeError: a file is missing or broken.
    """
    state, tensors = read_state(path)
    try:
        return Progress(**state), tensors
    except TypeError as error:
        raise ResumeError(f"checkpoint {path} can't be read: {error}") from error


def factors_in(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The policy's factors among a checkpoint's tensors: layer to (A [rank, in], B [out, rank])."""
    firsts = [name for name in tensors if name.startswith("policy.") and name.endswith(".A")]
    layers = [name.removeprefix("policy.").removesuffix(".A") for name in firsts]
    return {layer: (tensors[f"policy.{layer}.A"], tensors[f"policy.{layer}.B"]) for layer in layers}


def _complete(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{_PREFIX}*"))
