"""One PPO update of the policy's LoRA factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlarl.config import PpoConfig
from vlarl.learning.optimizer import DivergedError, mini_batches, take_step
from vlarl.learning.ranks import Indices, World
from vlarl.learning.trainable import LoraPolicy
from vlarl_trainer.algorithms.losses import PolicyTerms, clipped_policy_terms
from vlarl_trainer.batch import Observations

_WAY_OUT = (
    "no step was taken; lower trainer.ppo.learning_rate and go on from the last checkpoint with "
    "--resume"
)


@dataclass(frozen=True)
class PolicySamples:
    """N samples, whole on every rank; sample i was taken in state i."""

    observations: Observations
    token_ids: Tensor
    """int64 [N, K]."""
    logprobs: Tensor
    """[N, K], of the weights that acted, computed before the first step."""
    start_logprobs: Tensor
    """[N, K], of the weights as they are before the first step: what the KL is measured from. A
    stale action's own were an update behind them, and that drift isn't this update's."""
    advantages: Tensor
    """[N]."""


@dataclass(frozen=True)
class PolicyReport:
    """What an update did. Means are over all mini-batches seen, each before its step."""

    policy_loss: float
    approximate_kl: float
    largest_kl: float
    """Of a mini-batch, which is what the bound holds for."""
    clip_fraction: float
    grad_norm: float
    """Mean norm before clipping, over the steps taken."""
    policy_steps: int
    kl_stopped: bool
    """Whether the KL bound ended the update early."""


class PolicyUpdate:
    """PPO's optimizer and its schedule."""

    def __init__(
        self, policy: LoraPolicy, config: PpoConfig, temperature: float, world: World
    ) -> None:
        """temperature: the rollout's."""
        self.optimizer = torch.optim.AdamW(
            policy.named_factors().values(), lr=config.learning_rate, eps=1e-5, weight_decay=0.0
        )
        self.steps_taken = 0
        self._policy = policy
        self._config = config
        self._temperature = temperature
        self._world = world

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
        count = len(samples.advantages)
        for _ in range(self._config.epochs):
            for chosen in mini_batches(count, self._config.mini_batch, generator):
                means = self._accumulate(samples, chosen)
                if not means.isfinite().all():
                    raise DivergedError(
                        f"the policy's loss is not finite after {self.steps_taken} steps: "
                        f"{_WAY_OUT}"
                    )
                seen.append(means)
                if self._config.kl_stop and means[1] > self._config.kl_stop:
                    stopped = True
                    break
                grad_norms.append(self._step())
            if stopped:
                break
        self.optimizer.zero_grad()
        means = torch.stack(seen)
        loss, kl, clipped = means.mean(dim=0).tolist()
        norm = float(np.mean(grad_norms)) if grad_norms else 0.0
        largest = float(means[:, 1].max())
        return PolicyReport(loss, kl, largest, clipped, norm, len(grad_norms), stopped)

    def _accumulate(self, samples: PolicySamples, chosen: Indices) -> Tensor:
        """Leaves the gradient of the mini-batch's mean loss in the factors.

        Returns:
            Means of loss, approximate KL and clip fraction over the mini-batch's samples of all
            ranks, float64 [3].
        """
        self.optimizer.zero_grad()
        sums = torch.zeros(3, dtype=torch.float64)
        pieces = list(self._world.share(chosen, self._config.micro_batch))
        for number, (states, counted) in enumerate(pieces, start=1):
            self._policy.synchronise_gradients(number == len(pieces))
            terms, entropy = self._terms(samples, states)
            loss = terms.loss - self._config.entropy_coefficient * entropy
            # A piece that counts for nothing still takes part in the ranks' common passes.
            torch.autograd.backward(loss[:counted].sum() / len(chosen) + 0.0 * loss.sum())
            stacked = torch.stack([terms.loss, terms.kl, terms.clipped])
            sums += stacked[:, :counted].detach().to("cpu", torch.float64).sum(dim=1)
        return self._world.sum(sums) / len(chosen)

    def _terms(self, samples: PolicySamples, states: Indices) -> tuple[PolicyTerms, Tensor]:
        """Loss terms and entropies [B] of some samples under the policy as it is now."""
        picked = torch.from_numpy(states)
        device = self._world.device
        logprobs, entropy = self._policy.logprobs(
            samples.observations[states], samples.token_ids[picked].to(device), self._temperature
        )
        terms = clipped_policy_terms(
            logprobs,
            samples.logprobs[picked].to(device),
            samples.start_logprobs[picked].to(device),
            samples.advantages[picked].to(device),
            clip_low=self._config.clip_low,
            clip_high=self._config.clip_high,
            ratio=self._config.ratio,
        )
        return terms, entropy.mean(dim=-1)

    def _step(self) -> float:
        """Takes the accumulated gradient's step; returns its norm before clipping."""
        warm = min(1.0, (self.steps_taken + 1) / max(1, self._config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate * warm
        norm = take_step(
            self.optimizer,
            self._policy.named_factors().values(),
            self._config.max_grad_norm,
            f"the policy's gradient is not finite after {self.steps_taken} steps, although its "
            f"loss is: {_WAY_OUT}",
        )
        self.steps_taken += 1
        return norm
