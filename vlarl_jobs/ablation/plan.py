"""Which runs a table of ablations needs, each with its resolved configuration, and how far each is.

Whatever is wrong with any of them is said here, before the first is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlarl.config import AblationConfig, ConfigError, RunConfig, as_section, load_config, load_saved
from vlarl.config.base import merge
from vlarl.config.checkpoints import with_checkpoints
from vlarl.config.files import read_toml
from vlarl.json_lines import read_lines
from vlarl.weights.hub import require_commit
from vlarl.weights.hub_names import hub_name
from vlarl.weights.whereabouts import folder_fault
from vlarl_jobs.report.groups import differing_keys
from vlarl_jobs.report.run_folder import Run, read_run

_OURS = ("name", "seed")


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: str
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Its id, and its folder's name: VARIANT-SEED."""
        return self.folder.name


@dataclass(frozen=True)
class Ablation:
    """All runs of a table, in the order in which they are run."""

    config: AblationConfig
    runs: list[PlannedRun]
    out: Path
    """Holds their folders and receives the table."""

    @property
    def first(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.config.variants))


@dataclass(frozen=True)
class Standing:
    """How far a planned run is."""

    planned: PlannedRun
    begun: bool
    """Whether its folder holds it."""
    run: Run | None
    """What it has written down; None: no iteration is complete yet."""

    @property
    def finished(self) -> bool:
        """Whether all iterations are complete, and the evaluation after the last, if any."""
        if self.run is None or not self.run.done:
            return False
        wanted = self.run.config.evaluation
        if not (wanted.at_end and wanted.episodes_per_task):
            return True
        return self.run.evaluation_after(self.run.wanted) is not None

    @property
    def iterations(self) -> str:
        """The complete ones, in words."""
        done = len(self.run.iterations) if self.run else 0
        return f"{done} of {self.planned.config.trainer.iterations} iterations"

    @property
    def left(self) -> float:
        """Share of its iterations that is still to be done."""
        done = len(self.run.iterations) if self.run else 0
        return 1 - done / self.planned.config.trainer.iterations


def make_plan(config: AblationConfig, file: Path, out: Path) -> Ablation:
    """Resolves every run.

    Args:
        config: the table.
        file: where it was read from; its base is relative to that.
        out: folder of the runs' folders.

    Raises:
        ConfigError: a run's configuration is wrong, or two variants are the same.
    """
    base = _base(file.parent / config.base)
    common = merge(base, _changes(config.common, f"{file}: common"))
    variants = {
        name: merge(common, _changes(changes, f"{file}: variants.{name}"))
        for name, changes in config.variants.items()
    }
    runs = [
        _planned(name, values, seed, f"{file}: variants.{name}", out)
        for seed in config.seeds
        for name, values in variants.items()
    ]
    _check_distinct(runs[: len(variants)], file)
    return Ablation(config, runs, out)


def standing(planned: PlannedRun) -> Standing:
    """Reads how far a run is.

    Raises:
        ConfigError: the folder holds a run of another configuration.
        ReportError, DamagedFileError: the folder is damaged.
    """
    saved = planned.folder / "config.toml"
    if not saved.exists():
        return Standing(planned, begun=False, run=None)
    if keys := differing_keys([load_saved(RunConfig, saved), planned.config]):
        raise ConfigError(
            f"{planned.folder} was begun with another {', '.join(keys)} than the table says now; "
            "choose another --out, or remove that folder"
        )
    any_iteration = bool(read_lines(planned.folder / "metrics.jsonl"))
    run = read_run(planned.folder) if any_iteration else None
    return Standing(planned, begun=True, run=run)


def _base(path: Path) -> dict[str, object]:
    """What the file says, once it is sound: a variant may choose what the file only prepares."""
    load_config(path)
    return read_toml(path)


def _changes(changes: Mapping[str, object], source: str) -> Mapping[str, object]:
    for key in _OURS:
        if key in changes:
            raise ConfigError(f"{source}.{key}: can't be changed, it follows from variant and seed")
    return changes


def _planned(
    variant: str, values: Mapping[str, object], seed: int, source: str, out: Path
) -> PlannedRun:
    folder = out / f"{variant}-{seed}"
    config = as_section(RunConfig, {**values, "name": folder.name, "seed": seed}, source)
    with_checkpoints(
        config, partial(require_commit, why="all runs of a table must have the same weights")
    )
    checkpoint = config.policy.checkpoint
    if hub_name(checkpoint) is None and (fault := folder_fault(checkpoint)):
        raise ConfigError(f"{source}: {fault}")
    return PlannedRun(variant, config, folder)


def _check_distinct(runs: list[PlannedRun], file: Path) -> None:
    """Two variants alike would be one configuration counted twice."""
    for place, run in enumerate(runs):
        for other in runs[:place]:
            if not differing_keys([run.config, other.config]):
                raise ConfigError(
                    f"{file}: variants {other.variant} and {run.variant} are the same "
                    "configuration; remove one"
                )
