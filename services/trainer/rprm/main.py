"""`vlarl reward train`: one rank of a run."""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

import torch

from services.trainer.durable import durable_folder
from services.trainer.rprm.card import describe, probabilities, write_card
from services.trainer.rprm.judgement import Judgement
from services.trainer.rprm.reading import Labelled, read_labelled
from services.trainer.sft.export import export_checkpoint
from services.trainer.sft.fit import Fit, Stage
from services.trainer.sft.progress import StageProgress, stage_weights
from services.trainer.world import World
from vlarl.config import RewardModelConfig
from vlarl.openvla.checkpoint import base_digest
from vlarl.openvla.judge import Judge

_LOG = logging.getLogger(__name__)


def run(config: RewardModelConfig, run_dir: Path) -> None:
    """Trains from the run's last checkpoint, or from the start, and writes RUN/checkpoint: an
    OpenVLA checkpoint with the card of `card.py`.

    Under torchrun every rank calls it; all see the same folders.

    Raises:
        FatalError: the run can't go on; the message says why and what to do.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    world = World.from_environment()
    try:
        labelled = read_labelled(config)
        if world.first:
            _LOG.info("%s", labelled.description)
        stage = Stage(
            name="training",
            number=0,
            run_dir=run_dir,
            fit=config.training,
            seed=config.seed,
            base_digest=base_digest(config.checkpoint),
            keep_checkpoints=config.keep_checkpoints,
        )
        with contextlib.closing(Fit(stage, Judgement(config, labelled, world), world)) as fit:
            progress = fit.run()
        if world.first:
            _export(config, run_dir, stage, progress, labelled, world.device)
    finally:
        world.leave()


def _export(
    config: RewardModelConfig,
    run_dir: Path,
    stage: Stage,
    progress: StageProgress,
    labelled: Labelled,
    device: torch.device,
) -> None:
    step = progress.best_step if config.export == "best" else progress.step
    bare = run_dir / "weights"
    export_checkpoint(
        config.checkpoint,
        bare,
        stage_weights(stage.checkpoints, step),
        lora=config.lora if config.mode == "lora" else None,
        center_crop=config.augmentation.random_crop,
    )
    scores = probabilities(Judge(bare, device=str(device)), labelled.all_held_out)
    content = describe(bare, config, labelled, scores)
    target = run_dir / "checkpoint"
    with durable_folder(target) as folder:
        for file in bare.iterdir():
            file.rename(folder / file.name)
        write_card(folder, content, labelled, scores)
    shutil.rmtree(bare)
    held_out = content["held_out"]
    _LOG.info(
        "%s: version %s after step %d of %d; held out: AUC %s, accuracy %s, calibration error %s",
        target,
        content["version"],
        step,
        progress.step,
        held_out["auc"],
        held_out["accuracy"],
        content["calibration_error"],
    )
