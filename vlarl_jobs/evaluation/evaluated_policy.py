"""What is evaluated: a checkpoint as it is, or the policy that a run made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vlarl.config import RunConfig, load_saved
from vlarl.config.resuming import UNITS, check_terms, terms
from vlarl.learning.checkpoints import ResumeError
from vlarl.learning.export import export_checkpoint
from vlarl.models.meaning import chosen_unnorm_key, units_of
from vlarl.models.registry import policy_spec
from vlarl.models.spec import PolicySpec
from vlarl.weights.adapter import Adapter
from vlarl.weights.checkpoint import base_digest
from vlarl.weights.merge import checked_layers
from vlarl_trainer.publisher import published_adapter
from vlarl_trainer.record.best import best_checkpoint
from vlarl_trainer.record.progress import Progress, factors_in, run_checkpoints

_OWN = ("seed", "trainer.")
"""Fixed keys that a trained policy's tensors depend on, not what is done with it."""


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy, complete enough to be served, counted and filmed."""

    model: PolicySpec
    center_crop: bool
    unnorm_key: str
    progress: Progress
    """Where its run stood; iteration 0, version 0 and no run for a checkpoint as it is."""
    tensors: Mapping[str, Tensor]
    """What the run had learned; empty for a checkpoint as it is."""

    def adapter(self, config: RunConfig) -> Adapter | None:
        """What the policy servers are sent, as the run sent it; None: nothing."""
        if not self.tensors:
            return None
        lora = config.trainer.lora
        factors = factors_in(self.tensors)
        return published_adapter(
            self.progress,
            factors,
            scaling=lora.alpha / lora.rank,
            checked_layers=checked_layers(list(factors), config.trainer.merged_check),
        )


def load_evaluated_policy(
    config: RunConfig, trained: Path | None, *, best: bool = False
) -> EvaluatedPolicy:
    """Reads everything that can be wrong with a policy before anything is started.

    Args:
        config: names the base checkpoint, and how it is used.
        trained: a run's folder, for its last checkpoint, or one of its checkpoints; None: the base
            checkpoint as it is.
        best: of a run's folder, take the checkpoint that is the best by the run's own evaluations,
            not the last.

    Raises:
        FatalError: a checkpoint is missing, broken or another base's, or lacks the statistics.
    """
    model = policy_spec(config.policy.checkpoint)
    key = chosen_unnorm_key(config, model)
    digest = base_digest(config.policy.checkpoint)
    progress = Progress(run_id="", base_digest=digest, version=0, acted=0)
    tensors: Mapping[str, Tensor] = {}
    if trained is not None:
        path = best_checkpoint(trained) if best else _checkpoint_of(trained)
        progress, tensors = run_checkpoints(path.parents[1]).load(path)
        if progress.base_digest != digest:
            raise ResumeError(
                f"checkpoint {path} was trained on base {progress.base_digest[:12]}, not on "
                f"{config.policy.checkpoint} ({digest[:12]}); set policy.checkpoint"
            )
        _check_meaning(path, progress, config, model)
    return EvaluatedPolicy(
        model=model,
        center_crop=model.crops(config.policy.center_crop),
        unnorm_key=key,
        progress=progress,
        tensors=tensors,
    )


def export_policy(config: RunConfig, trained: Path, out: Path, *, best: bool) -> Progress:
    """Writes the policy that a run made as a checkpoint of its own.

    Args:
        config: the run's.
        trained: see `load_evaluated_policy`.
        out: folder to write.
        best: see `load_evaluated_policy`.

    Returns:
        Where the run stood.

    Raises:
        FatalError: as `load_evaluated_policy` does, and as `export_checkpoint`.
    """
    subject = load_evaluated_policy(config, trained, best=best)
    pairs = factors_in(subject.tensors)
    factors = {f"{layer}.A": first for layer, (first, _) in pairs.items()}
    factors |= {f"{layer}.B": second for layer, (_, second) in pairs.items()}
    export_checkpoint(
        config.policy.checkpoint,
        out,
        factors,
        lora=config.trainer.lora,
        center_crop=subject.center_crop,
    )
    return subject.progress


def _check_meaning(path: Path, progress: Progress, config: RunConfig, model: PolicySpec) -> None:
    """Whether factors and critic are used as they were learned; how episodes run may differ."""
    learned: Mapping[str, object] = progress.terms
    saved = path.parents[1] / "config.toml"
    if not learned and saved.exists():  # an earlier version wrote the checkpoint
        learned = terms(load_saved(RunConfig, saved))
    own = {key: value for key, value in learned.items() if key.startswith(_OWN)}
    now = terms(config)
    if isinstance(units := learned.get(UNITS), Mapping):
        own[UNITS], now[UNITS] = units, units_of(model, units)
    check_terms(RunConfig, f"checkpoint {path}", own, now)


def _checkpoint_of(trained: Path) -> Path:
    if trained.parent.name == "checkpoints":
        return trained
    latest = run_checkpoints(trained).latest()
    if latest is None:
        raise ResumeError(f"run {trained} has no checkpoint yet")
    return latest
