"""AdamW's steps, the same for every model that learns: PPO's policy and critic, fine-tuning, and
reward models.

    for micro_batch in ranks.share(mini_batch, size):    (ranks.py)
        accumulate(losses, micro_batch)
    means()      of the mini-batch, over all ranks; not finite: refused
    step()       clip, AdamW; a gradient that isn't finite: refused, or in float16 left out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlarl.config import FitConfig
from vlarl.config.learning import Schedule
from vlarl.errors import FatalError
from vlarl.learning.ranks import MicroBatch, Ranks, like, whole

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class DivergedError(FatalError):
    """A loss or a gradient is no number any more; no step was taken from it."""


class LossScale:
    """What losses are multiplied by before the backward pass, and gradients divided by after it.

    float16 has no numbers between 0 and 6e-8, where many gradients are, and none beyond 65,504. So
    the scale is halved where a gradient overflows, and doubled after a thousand steps without.
    (P. Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740.) A power of two changes
    no digit of what neither over- nor underflows.
    """

    _START = 2.0**16
    _PATIENCE = 1000

    def __init__(self) -> None:
        self.value = self._START
        self._steps = 0

    def stepped(self) -> None:
        """After a step."""
        self._steps += 1
        if self._steps == self._PATIENCE:
            self.value, self._steps = 2 * self.value, 0

    def overflowed(self) -> bool:
        """After a gradient that isn't finite; False: the scale isn't to blame."""
        self._steps = 0
        self.value /= 2
        return self.value >= 1

    def state(self) -> Tensor:
        """For a checkpoint."""
        return torch.tensor([self.value, float(self._steps)], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        """Takes over what `state` gave."""
        self.value, self._steps = float(state[0]), int(state[1])


class StepOptimizer:
    """AdamW over named parameters: one step a mini-batch, whose loss is the mean of its samples'.

    A mini-batch is computed in micro-batches, on all ranks. The step is the same however it is cut
    up, up to the order of sums. Methods are called on every rank alike.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        ranks: Ranks,
        *,
        rate: Callable[[int], float],
        max_grad_norm: float,
        name: str,
        rate_key: str,
        weight_decay: float = 0.0,
        epsilon: float = 1e-8,
        synchronise_gradients: Callable[[bool], None] | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        """Takes no step yet.

        Args:
            parameters: what learns, float32, sharded where the model is.
            ranks: which compute a mini-batch together.
            rate: the learning rate of a step, by its number, counted from 0.
            max_grad_norm: bound on the gradient's norm.
            name: what learns, for errors.
            rate_key: the rate's key in the configuration, for errors.
            weight_decay: AdamW's.
            epsilon: AdamW's.
            synchronise_gradients: says whether the next backward pass adds gradients up over the
                ranks, or only locally; none: nothing is sharded.
            loss_scale: where passes compute in float16.
        """
        self.steps_taken = 0
        self.last_rate = 0.0
        """The rate that the last step took; 0 before the first."""
        self._parameters = parameters
        self._ranks = ranks
        self._rate = rate
        self._max_grad_norm = max_grad_norm
        self._name = name
        self._rate_key = rate_key
        self._synchronise_gradients = synchronise_gradients
        self._loss_scale = loss_scale
        self._adamw = torch.optim.AdamW(parameters.values(), weight_decay=weight_decay, eps=epsilon)
        self._sums: Tensor | None = None
        self._size = 0

    def accumulate(
        self, losses: Tensor, micro_batch: MicroBatch, watched: Tensor | None = None
    ) -> None:
        """Adds a micro-batch's part of the gradient of the mini-batch's mean loss.

        Args:
            losses: [B], of the micro-batch's samples; they carry the gradient.
            micro_batch: which samples they are; the mini-batch is complete with the last one.
            watched: [M, B], what `means` is of; none: of the losses.
        """
        if self._synchronise_gradients is not None:
            self._synchronise_gradients(micro_batch.last)
        counted = losses[: micro_batch.counted].sum()
        # A micro-batch that counts for nothing still takes part in the ranks' common passes.
        loss = counted / micro_batch.size + 0.0 * losses.sum()
        torch.autograd.backward(loss if self._loss_scale is None else loss * self._loss_scale.value)
        if micro_batch.last:
            self._ranks.sum_gradients(self._parameters.values())
        rows = losses[None] if watched is None else watched
        # They stay on the device: to look at them would wait for the backward pass.
        rows = rows[:, : micro_batch.counted].detach().to(torch.float64)
        self._sums = rows.sum(dim=1) + (0.0 if self._sums is None else self._sums)
        self._size = micro_batch.size

    def means(self) -> Tensor:
        """What was watched, its means over the accumulated mini-batch's samples of all ranks:
        float64 [M].

        Raises:
            DivergedError: one isn't finite. The gradient is forgotten, on all ranks alike.
        """
        assert self._sums is not None, "nothing was accumulated"  # noqa: S101
        means = self._ranks.sum(self._sums) / self._size
        self._sums = None
        if not means.isfinite().all():
            self.discard()
            raise DivergedError(self._refusal("loss"))
        return means

    def step(self) -> float | None:
        """Takes the step of the accumulated gradient, scaled down to the bound, and forgets it.

        A gradient may be infinite where its loss isn't: products overflow on the way back. Scaled
        down it is 0 or no number, and AdamW would keep either in weights and moments for good. The
        norm is all ranks', so they refuse together.

        Returns:
            The gradient's norm before it was scaled down; None: it overflowed because of the loss's
            scale, and no step was taken.

        Raises:
            DivergedError: it isn't finite. Weights and moments are as they were.
        """
        if self._loss_scale is not None:
            for parameter in self._parameters.values():
                if parameter.grad is not None:
                    parameter.grad /= self._loss_scale.value
        found = nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if not math.isfinite(norm):
            self.discard()
            if self._loss_scale is not None and self._loss_scale.overflowed():
                return None
            raise DivergedError(self._refusal("gradient"))
        self.last_rate = self._rate(self.steps_taken)
        for group in self._adamw.param_groups:
            group["lr"] = self.last_rate
        self._adamw.step()
        self.steps_taken += 1
        self.discard()
        if self._loss_scale is not None:
            self._loss_scale.stepped()
        return norm

    def discard(self) -> None:
        """Forgets the accumulated gradient."""
        self._adamw.zero_grad()
        self._sums = None

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The moments, whole and on the CPU, as "PREFIX.NAME.MOMENT"."""
        gathered = {}
        for name, parameter in self._parameters.items():
            state = self._adamw.state[parameter]
            for moment in _MOMENTS:
                if moment in state:
                    gathered[f"{prefix}.{name}.{moment}"] = whole(state[moment])
        if self._loss_scale is not None:
            gathered[f"{prefix}.loss_scale"] = self._loss_scale.state()
        return gathered

    def restore(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Takes over what `tensors` gave, and the number of steps with it; every rank holds all. A
        parameter that has no moments in them begins anew.
        """
        self.steps_taken = 0
        for name, parameter in self._parameters.items():
            state = {}
            for moment in _MOMENTS:
                if (value := tensors.get(f"{prefix}.{name}.{moment}")) is not None:
                    # AdamW counts its steps in a plain tensor on the CPU.
                    counts = moment == "step"
                    state[moment] = value.clone() if counts else like(value, parameter).clone()
            self._adamw.state.pop(parameter, None)
            if state:
                self._adamw.state[parameter] = state
                self.steps_taken = int(state["step"])
        scale = tensors.get(f"{prefix}.loss_scale")
        if self._loss_scale is not None and scale is not None:
            self._loss_scale.restore(scale)

    def _refusal(self, what: str) -> str:
        return (
            f"{self._name}: the {what} is not finite after {self.steps_taken} steps, and no step "
            f"was taken: lower {self._rate_key} and go on from the last checkpoint with --resume"
        )


def warmed_up(step: int, warmup_steps: int) -> float:
    """Share of the learning rate that a step, counted from 0, takes: a linear rise to 1."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def scheduled(done: float, schedule: Schedule) -> float:
    """Share of the learning rate where a share of a training is done: 1, or what falls from 1 to 0
    along a line or a cosine.
    """
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))


def learning_rate(step: int, fit: FitConfig) -> float:
    """Rate of a step, counted from 0: a linear rise, then by the schedule."""
    done = max(0, step - fit.warmup_steps) / max(1, fit.steps - fit.warmup_steps)
    return fit.learning_rate * warmed_up(step, fit.warmup_steps) * scheduled(done, fit.schedule)


def mini_batches(
    count: int, size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """A random order of `count` samples in pieces of at most `size` whose lengths differ by at
    most one: no ragged rest takes a whole step in the direction of a few samples.
    """
    order = generator.permutation(count).astype(np.int64)
    yield from np.array_split(order, -(-count // size))
