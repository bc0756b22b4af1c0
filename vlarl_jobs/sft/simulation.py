"""The policy in the simulator while it is being fine-tuned: `vlarl eval`, in a process of its own.

    RUN/evaluations/step-0000300/   what `vlarl eval` leaves behind; its output in logs/eval.log

Training waits meanwhile, on all ranks. An evaluation that fails doesn't end the training: the log
says how it failed, and a resumed run tries the last one again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vlarl.config import SimulationConfig
from vlarl.launch.process import Service
from vlarl.launch.torchrun import without_ranks
from vlarl.learning.ranks import Ranks

_LOG = logging.getLogger(__name__)

# `vlarl eval` needs some to stop its own services.
_STOP_SECONDS = 40.0


class Simulation:
    """Evaluates the checkpoints of a stage that are due."""

    def __init__(
        self,
        config: SimulationConfig,
        run_dir: Path,
        steps: int,
        export: Callable[[int, Path], None],
        ranks: Ranks,
    ) -> None:
        """Starts nothing yet.

        Args:
            config: when, and on what.
            run_dir: receives evaluations/.
            steps: of the stage; after the last one an evaluation is due.
            export: writes the weights after so many steps as an OpenVLA checkpoint.
            ranks: all of which call `success`.
        """
        self._config = config
        self._run_dir = run_dir
        self._steps = steps
        self._export = export
        self._ranks = ranks

    def success(self, step: int) -> dict[str, float]:
        """Success in the simulator after so many steps, on rank 0, by metric; {} where none is due
        or the evaluation failed.
        """
        if step % self._config.every_steps and step != self._steps:
            return {}
        found: dict[str, float] = {}
        if self._ranks.first:
            folder = self._run_dir / "evaluations" / f"step-{step:07d}"
            found = _read_success(folder) or self._evaluate(step, folder)
        self._ranks.wait_for_first()
        return found

    def _evaluate(self, step: int, folder: Path) -> dict[str, float]:
        checkpoint = folder / "checkpoint"
        self._export(step, checkpoint)
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # the policy server may share this GPU
        how = asyncio.run(self._run(checkpoint, folder))
        shutil.rmtree(checkpoint)
        found = _read_success(folder)
        if not found:
            _LOG.error("the evaluation after step %d failed %s; training goes on", step, how)
        return found

    async def _run(self, checkpoint: Path, folder: Path) -> str:
        """Runs the evaluation to its end; how that was."""
        config = self._config
        command = [sys.executable, "-m", "vlarl", "eval", str(config.config)]
        command += ["--checkpoint", str(checkpoint), "--out", str(folder)]
        command += ["--episodes-per-task", str(config.episodes_per_task)]
        for override in config.overrides:
            command += ["--set", override]
        log = folder / "logs" / "eval.log"
        service = Service("eval", command, log, without_ranks(os.environ))
        await service.start()
        try:
            return await service.epitaph()
        finally:
            await service.stop(_STOP_SECONDS)


def _read_success(folder: Path) -> dict[str, float]:
    """The metrics of an evaluation that has ended; {} otherwise."""
    path = folder / "evaluation.json"
    if not path.exists():
        return {}
    score = json.loads(path.read_text(encoding="utf-8"))
    if not score.get("ended", score["complete"]):  # older ones don't say
        return {}
    if score["missing"]:
        _LOG.warning(
            "%d of %d episodes were given up, and count as failures: see %s",
            score["missing"],
            score["total"]["episodes"],
            folder / "logs",
        )
    by_task = {
        f"success_rate/task_{task}": counted["success_rate"]
        for task, counted in score["tasks"].items()
    }
    return {"success_rate": score["total"]["success_rate"]} | by_task
