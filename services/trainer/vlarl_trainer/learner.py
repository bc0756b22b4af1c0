"""What every rank does with an iteration's trajectories: values, advantages, PPO, critic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlarl.config import TrainerConfig
from vlarl.errors import FatalError
from vlarl.learning.checkpoints import gathered, take_over
from vlarl.learning.optimizer import LossScale
from vlarl.learning.ranks import Indices, Ranks
from vlarl.learning.seeds import Stream, generator_for
from vlarl.learning.sharding import compute_dtype
from vlarl.learning.trainable import LoraPolicy
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import policy_family
from vlarl.weights.merge import Checksums, checked_layers
from vlarl_trainer.algorithms.critic import Critic
from vlarl_trainer.algorithms.ppo import Floats, batch_advantages, whiten
from vlarl_trainer.batch import Batch, Experience, Observations, build_batch
from vlarl_trainer.memory import memory_bytes, place
from vlarl_trainer.parity import GAP_BOUNDS, Parity
from vlarl_trainer.policy_update import PolicySamples, PolicyUpdate
from vlarl_trainer.record.progress import factors_in


@dataclass(frozen=True)
class Snapshot:
    """All that was learned, whole and on the CPU; empty on ranks other than 0."""

    tensors: dict[str, Tensor]
    """Factors, critic and both optimizers under flat names, as checkpoints hold them."""
    checksums: Checksums
    """Of merged weights that the passes compute with, of the layers that are to be checked."""

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The policy's, by layer: A [rank, in] and B [out, rank]."""
        return factors_in(self.tensors)


class ParityError(FatalError):
    """Policy server and trainer disagree about the same action's probability."""


class Learner:
    """Policy, critic and optimizers of one rank. Methods are called on every rank alike."""

    def __init__(
        self,
        checkpoint: Path,
        config: TrainerConfig,
        *,
        center_crop: bool,
        seed: int,
        ranks: Ranks,
        success_reward: float = 1.0,
    ) -> None:
        """Loads the policy's checkpoint.

        Args:
            checkpoint: the policy.
            config: how it learns.
            center_crop: whether it sees the centre of a frame.
            seed: of factors, critic and the order of samples.
            ranks: which learn together.
            success_reward: the scale by which advantages are large or small.
        """
        self.dtype = compute_dtype(config.dtype, ranks.device, on_gpu=torch.float16)
        family = policy_family(checkpoint)
        self.placement = place(
            config,
            family.config,
            ranks=ranks.size,
            itemsize=self.dtype.itemsize,
            memory_bytes=memory_bytes(config, ranks),
        )
        self.policy = LoraPolicy(
            checkpoint,
            config.lora,
            dtype=self.dtype,
            seed=seed,
            ranks=ranks,
            activation_checkpointing=self.placement.recomputed,
            sharded=self.placement.sharded,
        )
        self.critic = Critic(
            config.critic,
            feature_width=self.policy.feature_width,
            patches=self.policy.patches,
            max_grad_norm=config.ppo.max_grad_norm,
            seed=seed,
            device=ranks.device,
        )
        self._update = PolicyUpdate(
            self.policy,
            config.ppo,
            config.temperature,
            ranks,
            most_tokens=self.placement.most_tokens,
            loss_scale=LossScale() if self.dtype == torch.float16 else None,
        )
        self._processor = family.processor(center_crop)
        self._config = config
        self._whiten_floor = config.ppo.whiten_floor * abs(success_reward)
        self._seed = seed
        self._ranks = ranks
        self._snapshots = 0

    def learn(self, experience: Experience) -> dict[str, float]:
        """Learns from one iteration's trajectories.

        Returns:
            The iteration's metrics, by their names in record/metrics.py.

        Raises:
            ParityError: nothing was learned, because the log-probs on both sides disagree.
            DivergedError: a loss or a gradient is not finite.
            TrajectoryError: a recorded frame is no image.
        """
        started = time.monotonic()
        batch = build_batch(experience)
        observations = Observations(
            batch.frames, batch.instructions, self._processor, self._ranks.device
        )
        features, logprobs, entropy = self._look(observations, batch)
        parity = self._check_parity(batch, logprobs)
        values = self._ranks.broadcast(self.critic.values(features))
        ppo = self._config.ppo
        advantages, returns = self._advantages(batch, values, ppo.gae_lambda)
        if (critic_lambda := self._config.critic.gae_lambda) is not None:
            _, returns = self._advantages(batch, values, critic_lambda)
        metrics = {
            "stale_actions": 1.0 - float(batch.fresh.mean()),
            "entropy": float(entropy.mean()),
            "advantage_deviation": float(advantages.std()),
            "seconds_inference": time.monotonic() - started,
        } | vars(parity)
        warming_up = experience.iteration < self._config.critic.warmup_iterations
        if not warming_up:
            fresh = torch.from_numpy(batch.fresh)[:, None]
            samples = PolicySamples(
                observations=observations,
                token_ids=torch.from_numpy(batch.token_ids),
                # A stale action was taken by weights that are gone: the server's word counts.
                logprobs=torch.where(fresh, logprobs, torch.from_numpy(batch.server_logprobs)),
                start_logprobs=logprobs,
                advantages=torch.from_numpy(
                    whiten(advantages, self._whiten_floor) if ppo.whiten_advantages else advantages
                ).float(),
            )
            self._update.rate = experience.rate
            order = generator_for(self._seed, Stream.POLICY_ORDER, experience.iteration)
            metrics |= {k: float(v) for k, v in vars(self._update.run(samples, order)).items()}
        metrics |= self._fit_critic(experience.iteration, features, returns, warming_up)
        return metrics | self._ranks.memory()

    def _advantages(self, batch: Batch, values: Tensor, gae_lambda: float) -> tuple[Floats, Floats]:
        """Advantages [N] and returns [N] by the critic's values of the states looked at."""
        ppo = self._config.ppo
        known = np.zeros(len(batch.frames))
        known[: len(values)] = values.double().numpy()
        return batch_advantages(
            batch,
            known,
            ppo.gamma,
            gae_lambda,
            limit_is_terminal=ppo.time_limit == "terminal",
        )

    def values(self, frames: Sequence[bytes], instruction: str) -> list[float]:
        """The critic's values of states, given as encoded frames, of one task."""
        observations = Observations(
            frames, [instruction] * len(frames), self._processor, self._ranks.device
        )
        values: list[float] = self.critic.values(self._features(observations)).tolist()
        return values

    def _look(self, observations: Observations, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the weights as they are make of the batch, without gradient.

        Returns:
            The critic's features of the states whose values count [S', F]: of the N samples, and
            of final states where returns are bootstrapped. Log-probs and entropies [N, K] of the
            actions taken.
        """
        samples = len(batch.token_ids)
        bootstrapped = self._config.ppo.time_limit == "bootstrap"
        states = len(batch.frames) if bootstrapped else samples
        if self._config.critic.features == "base":
            features = self._features(observations, states)
            return features, *self._logprobs(observations, batch)
        # Any token will do after a final state: what the critic sees comes before it.
        any_token = np.full((states - samples, *batch.token_ids.shape[1:]), batch.token_ids.min())
        tokens = torch.from_numpy(np.concatenate([batch.token_ids, any_token]))
        width = batch.token_ids.shape[1]

        def row(seen: ObservationBatch, which: Indices) -> Tensor:
            own = tokens[torch.from_numpy(which)].to(self._ranks.device)
            looked = self.policy.states_and_logprobs(seen, own, self._config.temperature)
            return torch.cat([self.critic.features(*looked[0]), *looked[1:]], dim=1)

        rows = self._rows(observations, states, row)
        features, logprobs, entropy = rows.tensor_split((-2 * width, -width), dim=1)
        return features.contiguous(), logprobs[:samples], entropy[:samples]

    def _features(self, observations: Observations, states: int | None = None) -> Tensor:
        """The critic's features of the first so many states, or of all [S, F]."""
        factors = self._config.critic.features == "policy"
        return self._rows(
            observations,
            len(observations) if states is None else states,
            lambda seen, _: self.critic.features(*self.policy.states(seen, factors=factors)),
        )

    @torch.no_grad()
    def _logprobs(self, observations: Observations, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [N, K] of the actions taken, under the weights as they are."""

        def row(seen: ObservationBatch, which: Indices) -> Tensor:
            tokens = torch.from_numpy(batch.token_ids[which]).to(self._ranks.device)
            both = self.policy.logprobs(seen, tokens, self._config.temperature)
            return torch.stack(both, dim=-1)

        rows = self._rows(observations, len(batch.token_ids), row)
        logprobs, entropy = rows.unbind(dim=-1)
        return logprobs, entropy

    def _rows(
        self,
        observations: Observations,
        states: int,
        row: Callable[[ObservationBatch, Indices], Tensor],
    ) -> Tensor:
        """What `row` makes of the first so many states, given some and their numbers, each computed
        on one rank: [states, ...] on the CPU.
        """
        ppo = self._config.ppo
        lengths = self.policy.sequence_lengths(observations.prompt_lengths[:states])
        shares = self._ranks.share(
            np.arange(states), ppo.micro_batch, lengths=lengths, most_tokens=ppo.micro_batch_tokens
        )
        # Nothing is looked at before all passes are on their way to the device.
        parts = [row(observations[one.samples], one.samples)[: one.counted] for one in shares]
        return self._ranks.gather(torch.cat(parts).cpu(), states, lengths=lengths)

    @property
    def logprob_gap_bound(self) -> float:
        """The `Parity.bound` that is no error yet."""
        return self._config.logprob_gap_bound or GAP_BOUNDS[self.dtype]

    def _check_parity(self, batch: Batch, logprobs: Tensor) -> Parity:
        """Server against trainer, over the actions that the trainer's own version took."""
        if not batch.fresh.any():
            return Parity(0.0, 0.0, 0.0, 0.0)
        parity = Parity.of((batch.server_logprobs - logprobs.numpy())[batch.fresh])
        if excess := parity.excess(self.logprob_gap_bound):
            raise ParityError(
                f"policy server and trainer disagree about the log-probs of tokens: {excess}, and "
                "the PPO ratio would mean nothing. Do both use the same checkpoint, data type, "
                "centre crop and temperature? (trainer.logprob_gap_bound)"
            )
        return parity

    def _fit_critic(
        self, iteration: int, features: Tensor, returns: np.ndarray, warming_up: bool
    ) -> dict[str, float]:
        """Rank 0 trains the critic; the others get its values, not its weights."""
        if not self._ranks.first:
            return {}
        critic, ppo = self._config.critic, self._config.ppo
        epochs = critic.epochs or ppo.epochs
        report = self.critic.fit(
            features[: len(returns)],
            torch.from_numpy(returns),
            epochs=critic.warmup_epochs if warming_up else epochs,
            mini_batch=ppo.mini_batch,
            generator=generator_for(self._seed, Stream.CRITIC_ORDER, iteration),
        )
        return vars(report)

    def snapshot(self) -> Snapshot:
        """Gathers all that was learned."""
        checksums = self._checksums()
        tensors = gathered(self.policy.named_parameters(), "policy")
        tensors |= self._update.optimizer.tensors("policy_optimizer")
        if not self._ranks.first:
            return Snapshot({}, checksums)
        tensors |= gathered(self.critic.head.state_dict(), "critic")
        tensors |= self.critic.optimizer.tensors("critic_optimizer")
        # For 0.1.0, which reads it; here AdamW's own count is.
        tensors["policy_steps"] = torch.tensor(self._update.optimizer.steps_taken)
        return Snapshot(tensors, checksums)

    def _checksums(self) -> Checksums:
        layers = checked_layers(self.policy.layers, self._config.merged_check, self._snapshots)
        self._snapshots += 1
        dtype = str(self.dtype).removeprefix("torch.")
        return Checksums(dtype, self.policy.checksums(layers))

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes a snapshot's tensors over; every rank holds all of them.

        Raises:
            ResumeError: the snapshot is of other layers, or of layers of another size.
        """
        take_over(self.policy.named_parameters(), tensors, "policy", section="trainer.lora")
        take_over(self.critic.head.state_dict(), tensors, "critic", section="trainer.critic")
        self._update.optimizer.restore(tensors, "policy_optimizer")
        self.critic.optimizer.restore(tensors, "critic_optimizer")
