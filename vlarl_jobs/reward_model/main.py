"""`vlarl reward train`: one rank of a run."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from vlarl.config import RewardModelConfig
from vlarl.data.contents import content_terms
from vlarl.disk import explained
from vlarl.learning.fit import Fit, Stage
from vlarl.learning.ranks import Ranks
from vlarl.learning.stage_progress import StageProgress, stage_weights
from vlarl.weights.checkpoint import base_digest
from vlarl_jobs.reward_model.backbones import export
from vlarl_jobs.reward_model.card import write_card
from vlarl_jobs.reward_model.objective import RewardObjective
from vlarl_jobs.reward_model.reading import Labelled, read_labelled

_LOG = logging.getLogger(__name__)


def run(config: RewardModelConfig, run_dir: Path) -> None:
    """Trains from the run's last checkpoint, or from the start, and writes RUN/checkpoint: one of
    the kind it began with, and the card of `card.py`.

    Under torchrun every rank calls it; all see the same folders.

    Raises:
        FatalError: the run can't go on; the message says why and what to do.
    """
    with explained(run_dir), Ranks.joined(config.threads) as ranks:
        labelled = read_labelled(config)
        if ranks.first:
            _LOG.info("%s", labelled.description)
        stage = Stage(
            name="training",
            number=0,
            run_dir=run_dir,
            fit=config.training,
            config=config,
            base_digest=base_digest(config.checkpoint),
            contents=content_terms(config),
        )
        with contextlib.closing(Fit(stage, RewardObjective(config, labelled, ranks), ranks)) as fit:
            progress = fit.run()
        if ranks.first:
            _export(config, run_dir, stage, progress, labelled)


def _export(
    config: RewardModelConfig,
    run_dir: Path,
    stage: Stage,
    progress: StageProgress,
    labelled: Labelled,
) -> None:
    step = progress.best_step if config.export == "best" else progress.step
    target = run_dir / "checkpoint"
    export(
        config,
        target,
        stage_weights(stage.checkpoints, step),
        finish=lambda folder: write_card(folder, config, labelled),
    )
    _LOG.info("%s holds the weights after step %d of %d", target, step, progress.step)
