"""`vlarl sft`: one rank of a run, stage after stage."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlarl.config import FitConfig, SftConfig
from vlarl.data.contents import content_terms
from vlarl.data.samples import SampleBatch
from vlarl.disk import explained
from vlarl.files import durable_folder
from vlarl.learning.export import checkpoint_bytes, copy_but_weights, export_checkpoint
from vlarl.learning.fit import Fit, Objective, Stage
from vlarl.learning.ranks import Ranks
from vlarl.learning.stage_progress import StageProgress, stage_weights
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.openvla_oft.starting import begin_oft, make_tiny_oft_checkpoint
from vlarl.weights.checkpoint import CheckpointReader, base_digest
from vlarl_jobs.sft.imitation import imitation
from vlarl_jobs.sft.perception import Perception
from vlarl_jobs.sft.reading import Demonstrations, read_demonstrations
from vlarl_jobs.sft.simulation import Simulation

_LOG = logging.getLogger(__name__)


def run(config: SftConfig, run_dir: Path) -> None:
    """Trains from the run's last checkpoint, or from the start, and writes RUN/checkpoint.

    Under torchrun every rank calls it; all see the same folders.

    Raises:
        FatalError: the run can't go on; the message says why and what to do.
    """
    with explained(run_dir), Ranks.joined(config.threads) as ranks:
        base = _starting_checkpoint(config, run_dir, ranks)
        demonstrations = read_demonstrations(
            config.data, base, center_crop=config.augmentation.random_crop, seed=config.seed
        )
        if ranks.first:
            _LOG.info("%s", demonstrations.description)
        stages = _Stages(config, run_dir, demonstrations, ranks)
        if config.pretrain is not None:
            base = stages.pretrain(base, config.pretrain)
        stages.train(base)


def _starting_checkpoint(config: SftConfig, run_dir: Path, ranks: Ranks) -> Path:
    """The checkpoint named; or a new tiny one, or the named one as one of another family, which
    rank 0 makes.
    """
    if config.checkpoint is not None and config.family is None:
        return config.checkpoint
    directory = run_dir / "initial"
    if ranks.first and not directory.exists():
        needed = 0 if config.checkpoint is None else checkpoint_bytes(config.checkpoint)
        with durable_folder(directory, needed) as folder:
            _begin(config, folder)
    ranks.wait_for_first()
    return directory


def _begin(config: SftConfig, folder: Path) -> None:
    family: dict[str, Any] = {}
    if config.family is not None:
        family = config.family.model_dump(exclude={"name"})
    sizes = config.model.model_dump() if config.model is not None else {}
    if not family:
        make_tiny_checkpoint(folder, seed=config.seed, **sizes)
    elif config.checkpoint is None:
        make_tiny_oft_checkpoint(folder, seed=config.seed, **family, **sizes)
    else:
        copy_but_weights(config.checkpoint, folder)
        reader = CheckpointReader(config.checkpoint)
        begin_oft(folder, ((key, reader.tensor(key)) for key in reader), config.seed, **family)


@dataclass(frozen=True)
class _Stages:
    """The stages of a run."""

    config: SftConfig
    run_dir: Path
    demonstrations: Demonstrations
    ranks: Ranks

    def pretrain(self, base: Path, fit: FitConfig) -> Path:
        """Pretrains vision; returns the checkpoint to go on with, RUN/pretrained."""
        target = self.run_dir / "pretrained"
        if target.exists():
            return target
        stage = self._stage("pretrain", 0, fit, base)
        progress = self._fit(stage, Perception(self.config, base, self.demonstrations, self.ranks))
        if self.ranks.first:
            export_checkpoint(base, target, stage_weights(stage.checkpoints, progress.best_step))
        self.ranks.wait_for_first()
        return target

    def train(self, base: Path) -> None:
        """Fine-tunes, and writes RUN/checkpoint."""
        config = self.config
        stage = self._stage("training", 1, config.training, base)

        def export(step: int, target: Path) -> None:
            export_checkpoint(
                base,
                target,
                stage_weights(stage.checkpoints, step),
                lora=config.lora if config.mode == "lora" else None,
                statistics=self.demonstrations.statistics,
                center_crop=config.augmentation.random_crop,
            )

        evaluate = None
        if config.simulation is not None:
            steps = config.training.steps
            simulation = Simulation(config.simulation, self.run_dir, steps, export, self.ranks)
            evaluate = simulation.success
        objective = imitation(config, base, self.demonstrations, self.ranks)
        progress = self._fit(stage, objective, evaluate)
        if not self.ranks.first:
            return
        step = progress.best_step if config.export == "best" else progress.step
        target = self.run_dir / "checkpoint"
        export(step, target)
        _LOG.info("%s holds the weights after step %d of %d", target, step, progress.step)

    def _stage(self, name: str, number: int, fit: FitConfig, base: Path) -> Stage:
        return Stage(
            name=name,
            number=number,
            run_dir=self.run_dir,
            fit=fit,
            config=self.config,
            base_digest=base_digest(base),
            contents=content_terms(self.config),
        )

    def _fit(
        self,
        stage: Stage,
        objective: Objective[SampleBatch],
        evaluate: Callable[[int], Mapping[str, float]] | None = None,
    ) -> StageProgress:
        with contextlib.closing(Fit(stage, objective, self.ranks, evaluate)) as fit:
            return fit.run()
