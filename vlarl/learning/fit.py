"""One stage of training, from its last checkpoint to its end.

    accumulate ──▶ step ──▶ ... ──▶ measure on held-out samples ──▶ line ──▶ checkpoint
                                                      now and then: evaluate in the simulator

A stage that was killed, at whatever moment, ends with the weights of one that ran through: what is
random is a function of the step (sample_order.py), the checkpoint holds the rest, and lines of
metrics that are newer than the checkpoint are forgotten.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vlarl.config import FitConfig, RewardModelConfig, SftConfig
from vlarl.config.resuming import terms
from vlarl.learning.checkpoints import gathered, take_over
from vlarl.learning.optimizer import StepOptimizer, learning_rate
from vlarl.learning.ranks import Indices, Ranks
from vlarl.learning.sample_order import SampleOrder
from vlarl.learning.stage_console import StageDisplay
from vlarl.learning.stage_log import StageLog
from vlarl.learning.stage_progress import StageProgress, load_stage, stage_checkpoints
from vlarl.models.meaning import meaning_terms

T = TypeVar("T")
U = TypeVar("U")

_AHEAD = 2


class SampleBatch(Protocol):
    """B samples as tensors."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""


B = TypeVar("B", bound=SampleBatch)
B_co = TypeVar("B_co", bound=SampleBatch, covariant=True)


class Samples(Protocol[B_co]):
    """N samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Indices) -> B_co:
        """Samples by number, on the CPU."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    """Its table in the configuration."""
    number: int
    """Its place in the run."""
    run_dir: Path
    fit: FitConfig
    config: SftConfig | RewardModelConfig
    """The run's."""
    base_digest: str
    """SHA-256 of the weights that it begins with."""
    contents: dict[str, object]
    """Digests of the folders that it learns from, by fixed key."""

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.run_dir / "checkpoints" / self.name


class Objective(Protocol[B]):
    """A model with trained parameters, its loss, and what it is measured by."""

    @property
    def train(self) -> Samples[B]:
        """What is learned from."""

    @property
    def held_out(self) -> Samples[B]:
        """What is measured on."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, float32, sharded where the model is, by the names under which
        checkpoints hold them.
        """

    def losses(self, batch: B, draws: Tensor) -> Tensor:
        """Loss [B] of samples on the model's device.

        draws: float32 [B, DRAWS + FURTHER_DRAWS], uniform in [0, 1): the only source of what is
            random.
        """

    def measure(self, batch: B) -> Tensor:
        """What `summary` needs of samples on the model's device: [B, M]."""

    def summary(self, rows: Tensor) -> dict[str, float]:
        """Metrics of held-out samples, `held_out_loss` among them; rows: `measure`'s, [N, M]."""

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""


@dataclass
class _Window:
    """What happened since the last line of metrics."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    samples: int = 0
    started: float = field(default_factory=time.monotonic)

    def scalars(self) -> dict[str, float]:
        """Means over the steps."""
        return {
            "loss": float(np.mean(self.losses)),
            "grad_norm": float(np.mean(self.grad_norms)),
            "samples_per_second": self.samples / (time.monotonic() - self.started),
        }


class Fit(Generic[B]):
    """A stage's optimizer, and what happens around its steps. Every rank runs one."""

    def __init__(
        self,
        stage: Stage,
        objective: Objective[B],
        ranks: Ranks,
        evaluate: Callable[[int], Mapping[str, float]] | None = None,
    ) -> None:
        """Takes the stage's last checkpoint over, where there is one.

        Args:
            stage: which.
            objective: the model, and what it learns from.
            ranks: which learn together.
            evaluate: gives success in the simulator after so many steps, by metric, on rank 0; {}
                where none is due. Every rank calls it, once the checkpoint is written.

        Raises:
            ResumeError, ConfigError, DamagedFileError: it can't be gone on from.
        """
        self._stage = stage
        self._objective = objective
        self._ranks = ranks
        self._evaluate = evaluate
        self._parameters = objective.named_parameters()
        self._optimizer = StepOptimizer(
            self._parameters,
            ranks,
            rate=lambda step: learning_rate(step, stage.fit),
            max_grad_norm=stage.fit.max_grad_norm,
            weight_decay=stage.fit.weight_decay,
            synchronise_gradients=objective.synchronise_gradients,
            name=stage.name,
            rate_key=f"{stage.name}.learning_rate",
        )
        config = stage.config
        self._order = SampleOrder(
            len(objective.train), stage.fit, ranks, seed=config.seed, stage=stage.number
        )
        own = terms(config) | meaning_terms(config) | stage.contents
        fresh = StageProgress(stage.base_digest, len(objective.train), terms=own)
        self._progress, tensors = load_stage(stage.checkpoints, fresh, type(config))
        if tensors:
            take_over(self._parameters, tensors, "weights", section=stage.name)
            self._optimizer.restore(tensors, "optimizer")
        done = self._progress.step
        self._log = StageLog(stage.run_dir, stage.name, done, config) if ranks.first else None
        self._display = StageDisplay(stage.name, stage.fit.steps, done) if ranks.first else None
        self._window = _Window()

    def run(self) -> StageProgress:
        """Goes on until all steps are done.

        Raises:
            DivergedError: loss or gradient is no number any more, on all ranks alike.
            DatasetError: a frame is no image.
            DiskFullError, NotFiniteError: a checkpoint can't be written.
        """
        if self._progress.step:
            self._simulate()  # which may be what the stage was killed in
        train = self._objective.train
        due = self._order.micro_batches(self._progress.step)
        for (step, micro_batch), batch in prefetched(due, lambda one: train[one[1].samples]):
            draws = self._order.draws(step, micro_batch).to(self._ranks.device)
            losses = self._objective.losses(batch.to(self._ranks.device), draws)
            self._optimizer.accumulate(losses, micro_batch)
            if micro_batch.last:
                self._finish_step(step + 1, micro_batch.size)
        return self._progress

    def close(self) -> None:
        """Closes the log and gives the terminal back."""
        if self._log is not None and self._display is not None:
            self._log.close()
            self._display.close()

    def _finish_step(self, done: int, samples: int) -> None:
        """Takes the accumulated step, the done-th."""
        loss = float(self._optimizer.means())
        norm = self._optimizer.step()
        assert norm is not None  # noqa: S101 - no loss is scaled
        self._window.grad_norms.append(norm)
        self._window.losses.append(loss)
        self._window.samples += samples
        if self._display is not None:
            self._display.step(done, loss)
        fit = self._stage.fit
        if done % fit.evaluate_every == 0 or done == fit.steps:
            self._milestone(done)
        elif done % fit.log_every == 0:
            self._record(done, self._window.scalars())

    def _milestone(self, done: int) -> None:
        """Measures, writes a line, and then the checkpoint."""
        trained = self._window.scalars()
        measured = self._measure()
        self._progress = self._progress.after(done, measured.get("held_out_loss"))
        self._record(done, trained | measured)
        tensors = gathered(self._parameters, "weights") | self._optimizer.tensors("optimizer")
        if self._ranks.first:
            stage_checkpoints(self._stage.checkpoints).save(
                done,
                self._progress,
                tensors,
                keep=self._stage.config.keep_checkpoints,
                best=self._progress.best_step,
            )
        self._simulate()
        self._window.started = time.monotonic()

    def _simulate(self) -> None:
        """Evaluates the checkpoint just written, if it is one to evaluate."""
        if self._evaluate is None:
            return
        done = self._progress.step
        success = self._evaluate(done)
        if success and self._log is not None and self._display is not None:
            self._log.write(done, success)
            self._display.success(done, success)

    def _record(self, done: int, scalars: dict[str, float]) -> None:
        rate = {"learning_rate": learning_rate(done - 1, self._stage.fit)}
        scalars = scalars | rate | self._ranks.memory()
        if self._log is not None and self._display is not None:
            self._log.write(done, scalars)
            self._display.line(done, scalars)
        self._window = _Window()

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        """Metrics of the held-out samples, on every rank."""
        held_out = self._objective.held_out
        if not len(held_out):
            return {}
        parts: list[Tensor] = []
        shares = self._ranks.share(np.arange(len(held_out)), self._stage.fit.micro_batch)
        for share, batch in prefetched(shares, lambda share: held_out[share.samples]):
            rows = self._objective.measure(batch.to(self._ranks.device))
            parts.append(rows.float().cpu()[: share.counted])
        return self._objective.summary(self._ranks.gather(torch.cat(parts), len(held_out)))


def prefetched(items: Iterable[T], load: Callable[[T], U]) -> Iterator[tuple[T, U]]:
    """Each item with what it loads as; the next ones load meanwhile, on a thread of their own."""
    with ThreadPoolExecutor(1, "load") as thread:
        waiting: deque[tuple[T, Future[U]]] = deque()
        for item in items:
            waiting.append((item, thread.submit(load, item)))
            if len(waiting) > _AHEAD:
                ready, loading = waiting.popleft()
                yield ready, loading.result()
        for ready, loading in waiting:
            yield ready, loading.result()
