"""One update of the policy's LoRA factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlarl.learning.optimizer import LossScale, StepOptimizer, mini_batches, warmed_up
from vlarl.learning.ranks import Indices, Ranks
from vlarl.learning.trainable import LoraPolicy
from vlarl_trainer.algorithms.base import Algorithm
from vlarl_trainer.algorithms.executed import averaged
from vlarl_trainer.algorithms.surrogate import PolicyTerms, reference_kl
from vlarl_trainer.batch import Observations


@dataclass(frozen=True)
class PolicySamples:
    """N samples, whole on every rank; sample i was taken in state i."""

    observations: Observations
    token_ids: Tensor
    """int64 [N, K]."""
    logprobs: Tensor
    """[N, K], what the ratio is against, see `corrected`."""
    weights: Tensor | None
    """One for each of the surrogate's ratios, see `corrected`; none: 1."""
    executed: Tensor | None
    """bool [N, C], which of an answer's control steps were executed; none: answers have one."""
    start_logprobs: Tensor
    """[N, K], of the weights as they are before the first step: what the KL is measured from. A
    stale action's own were an update behind them, and that drift isn't this update's."""
    reference_logprobs: Tensor | None
    """[N, K], of the policy that training began with; none: it isn't held to."""
    advantages: Tensor
    """[N]."""
    shares: Tensor
    """[N], what each sample weighs in the mean of losses; 1 on average."""


@dataclass(frozen=True)
class PolicyReport:
    """What an update did. Means are over all mini-batches seen, each before its step."""

    policy_loss: float
    approximate_kl: float
    largest_kl: float
    """The largest of a mini-batch; the bound `kl_stop` applies to it."""
    clip_fraction: float
    grad_norm: float
    """Mean norm before clipping, over the steps taken."""
    learning_rate: float
    """Of the last step; 0 where none was taken."""
    policy_steps: int
    overflowed_steps: int
    """Steps that were left out, because a gradient overflowed in float16."""
    kl_stopped: bool
    """Whether the KL bound ended the update early."""


class PolicyUpdate:
    """The policy's optimizer, and its way through a batch."""

    def __init__(
        self,
        policy: LoraPolicy,
        algorithm: Algorithm,
        temperature: float,
        ranks: Ranks,
        *,
        rate_key: str,
        most_tokens: int | None,
        loss_scale: LossScale | None = None,
    ) -> None:
        """Takes no step yet.

        Args:
            policy: what learns.
            algorithm: how; its section says so, too.
            temperature: the rollout's.
            ranks: which learn together.
            rate_key: the rate's key in the configuration, for errors.
            most_tokens: of a pass on one rank; None: only `config.micro_batch` is a bound.
            loss_scale: where the policy computes in float16.
        """
        config = algorithm.config
        self.optimizer = StepOptimizer(
            policy.named_parameters(),
            ranks,
            rate=lambda step: (
                config.learning_rate * warmed_up(step, config.warmup_steps) * self.rate
            ),
            max_grad_norm=config.max_grad_norm,
            epsilon=1e-5,
            synchronise_gradients=policy.synchronise_gradients,
            name="the policy",
            rate_key=rate_key,
            loss_scale=loss_scale,
        )
        self.rate = 1.0
        """Share of the learning rate that the next steps take."""
        self._policy = policy
        self._algorithm = algorithm
        self._config = config
        self._temperature = temperature
        self._ranks = ranks
        self._most_tokens = most_tokens

    def run(self, samples: PolicySamples, generator: np.random.Generator) -> PolicyReport:
        """Goes over the samples in mini-batches, one optimizer step each, until all epochs are
        done or the policy has moved too far from where it began.

        Args:
            samples: the batch.
            generator: of the samples' order; equal on every rank.

        Raises:
            DivergedError: loss or gradient isn't finite, on all ranks alike.
        """
        seen: list[Tensor] = []
        grad_norms: list[float] = []
        stopped = False
        overflows = 0
        for chosen in self._mini_batches(len(samples.advantages), generator):
            seen.append(self._accumulate(samples, chosen))
            _, kl, _ = seen[-1]
            if self._config.kl_stop and kl > self._config.kl_stop:
                self.optimizer.discard()
                stopped = True
                break
            norm = self.optimizer.step()
            if norm is None:
                overflows += 1
            else:
                grad_norms.append(norm)
        means = torch.stack(seen)
        loss, kl, clipped = means.mean(dim=0).tolist()
        mean_norm = float(np.mean(grad_norms)) if grad_norms else 0.0
        largest = float(means[:, 1].max())
        rate = self.optimizer.last_rate if grad_norms else 0.0
        return PolicyReport(
            loss, kl, largest, clipped, mean_norm, rate, len(grad_norms), overflows, stopped
        )

    def _mini_batches(self, count: int, generator: np.random.Generator) -> Iterator[Indices]:
        for _ in range(self._config.epochs):
            yield from mini_batches(count, self._config.mini_batch, generator)

    def _accumulate(self, samples: PolicySamples, chosen: Indices) -> Tensor:
        """Leaves the gradient of the mini-batch's mean loss in the factors.

        Returns:
            Means of loss, approximate KL and clip fraction over the mini-batch's samples of all
            ranks, float64 [3].
        """
        shares = self._ranks.share(
            chosen,
            self._config.micro_batch,
            lengths=self._policy.sequence_lengths(samples.observations.prompt_lengths[chosen]),
            most_tokens=self._most_tokens,
        )
        for micro_batch in shares:
            loss, terms = self._terms(samples, micro_batch.samples)
            self.optimizer.accumulate(
                loss,
                micro_batch,
                watched=torch.stack([terms.loss, terms.kl, terms.clipped]),
            )
        return self.optimizer.means()

    def _terms(self, samples: PolicySamples, states: Indices) -> tuple[Tensor, PolicyTerms]:
        """Losses [B] of some samples under the policy as it is now, and the surrogate's terms, both
        with what a sample weighs.
        """
        picked = torch.from_numpy(states)
        device = self._ranks.device

        def rows(values: Tensor) -> Tensor:
            return values[picked].to(device)

        executed = None if samples.executed is None else rows(samples.executed)

        logprobs, entropy = self._policy.logprobs(
            samples.observations[states], rows(samples.token_ids), self._temperature
        )
        terms = self._algorithm.terms(
            logprobs,
            rows(samples.logprobs),
            rows(samples.start_logprobs),
            rows(samples.advantages),
            None if samples.weights is None else rows(samples.weights),
            executed,
        )
        loss = terms.loss - self._config.entropy_coefficient * averaged(entropy, executed)
        if samples.reference_logprobs is not None:
            held = reference_kl(logprobs, rows(samples.reference_logprobs), executed)
            loss = loss + self._config.kl_coefficient * held
        shares = rows(samples.shares)
        return loss * shares, replace(terms, loss=terms.loss * shares)
