"""What every rank does with an iteration's trajectories: log-probs, advantages, the policy's
update, and what else its algorithm learns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlarl.config import TrainerConfig
from vlarl.config.learning import Ratio
from vlarl.learning.checkpoints import gathered, take_over
from vlarl.learning.optimizer import LossScale
from vlarl.learning.ranks import Indices, Ranks
from vlarl.learning.seeds import Stream, generator_for
from vlarl.learning.sharding import compute_dtype
from vlarl.learning.trainable import LoraPolicy
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import policy_family
from vlarl.weights.merge import Checksums, checked_layers
from vlarl_trainer.algorithms.base import Estimate, Setup
from vlarl_trainer.algorithms.executed import executed_mask, mean_of_all
from vlarl_trainer.algorithms.registry import build_algorithm
from vlarl_trainer.algorithms.surrogate import before_a_step, corrected, reference_kl
from vlarl_trainer.batch import Batch, Experience, Observations, Proprio, build_batch
from vlarl_trainer.memory import memory_bytes, place
from vlarl_trainer.parity import GAP_BOUNDS, Disagreement, Parity, ParityError
from vlarl_trainer.policy_update import PolicySamples, PolicyUpdate
from vlarl_trainer.record.progress import factors_in


@dataclass(frozen=True)
class Snapshot:
    """All that was learned, whole and on the CPU; empty on ranks other than 0."""

    tensors: dict[str, Tensor]
    """Factors, their optimizer and what the algorithm learns, under flat names, as checkpoints hold
    them."""
    checksums: Checksums
    """Of merged weights that the passes compute with, of the layers that are to be checked."""

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The policy's, by layer: A [rank, in] and B [out, rank]."""
        return factors_in(self.tensors)


@dataclass(frozen=True)
class Seen:
    """What the weights at the update's start make of N samples."""

    features: Tensor | None
    """[S', F], what the algorithm keeps of the states that it is shown; none: it is shown none."""
    logprobs: Tensor
    """[N, K], of the actions taken."""
    entropy: Tensor
    """[N, K]."""
    reference: Tensor | None
    """[N, K], log-probs of the actions under the policy that training began with; none: they would
    have taken a pass, and nothing depends on them."""


class Learner:
    """Policy, algorithm and optimizers of one rank. Methods are called on every rank alike."""

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
            seed: of factors, the algorithm and the order of samples.
            ranks: which learn together.
            success_reward: the scale by which advantages are large or small.
        """
        self.dtype = compute_dtype(config.dtype, ranks.device, on_gpu=torch.float16)
        family = policy_family(checkpoint)
        self.placement = place(
            config,
            family.sizes,
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
        self.algorithm = build_algorithm(Setup(config, self.policy, ranks, seed, success_reward))
        self._update = PolicyUpdate(
            self.policy,
            self.algorithm,
            config.temperature,
            ranks,
            rate_key=f"trainer.{config.algorithm}.learning_rate",
            most_tokens=self.placement.most_tokens,
            loss_scale=LossScale() if self.dtype == torch.float16 else None,
        )
        self._processor = family.processor(center_crop)
        self._spec = family.spec
        self._config = config
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
            batch.frames, batch.instructions, self._processor, self._ranks.device, batch.proprio
        )
        seen = self._look(observations, batch)
        parity = self._check_parity(experience, batch, observations, seen.logprobs)
        estimate = self.algorithm.estimate(batch, seen.features)
        metrics = {
            "stale_actions": 1.0 - float(batch.fresh.mean()),
            "entropy": mean_of_all(seen.entropy, self._executed(batch)),
            "advantage_deviation": float(estimate.raw.std()),
            "seconds_inference": time.monotonic() - started,
        } | vars(parity)
        metrics |= self._distances(batch, seen)
        if self.algorithm.learns_policy(experience.iteration, estimate):
            samples = self._samples(observations, batch, seen, estimate)
            self._update.rate = experience.rate
            order = generator_for(self._seed, Stream.POLICY_ORDER, experience.iteration)
            metrics |= {k: float(v) for k, v in vars(self._update.run(samples, order)).items()}
        metrics |= self.algorithm.finish(experience.iteration, seen.features, estimate)
        return metrics | self._ranks.memory()

    def _distances(self, batch: Batch, seen: Seen) -> dict[str, float]:
        """How far the policy is from the weights that acted, and from where training began."""
        config = self.algorithm.config
        server = torch.from_numpy(batch.server_logprobs)
        distances = before_a_step(
            seen.logprobs,
            server,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            ratio=self._ratio,
            executed=self._executed(batch),
        )
        if seen.reference is not None:
            distance = reference_kl(seen.logprobs, seen.reference, self._executed(batch))
            distances["reference_kl"] = float(distance.mean())
        return distances

    @property
    def _ratio(self) -> Ratio:
        """What the algorithm compares of an answer."""
        return self.algorithm.config.ratio_for(self._spec.chunk)

    def _executed(self, batch: Batch) -> Tensor | None:
        """Which control steps of each answer were executed, see algorithms/executed.py."""
        return executed_mask(torch.from_numpy(batch.executed), self._spec.chunk)

    def _samples(
        self, observations: Observations, batch: Batch, seen: Seen, estimate: Estimate
    ) -> PolicySamples:
        """What the policy's update learns from."""
        logprobs, weights = corrected(
            self._config.correction,
            start=seen.logprobs,
            server=torch.from_numpy(batch.server_logprobs),
            fresh=torch.from_numpy(batch.fresh),
            ratio=self._ratio,
            cap=self._config.correction_cap,
            executed=self._executed(batch),
        )
        return PolicySamples(
            observations=observations,
            token_ids=torch.from_numpy(batch.token_ids),
            logprobs=logprobs,
            executed=self._executed(batch),
            weights=weights,
            start_logprobs=seen.logprobs,
            reference_logprobs=seen.reference if self.algorithm.config.kl_coefficient else None,
            advantages=torch.from_numpy(estimate.advantages).float(),
            shares=torch.from_numpy(self.algorithm.shares(batch)).float(),
        )

    def values(
        self, frames: Sequence[bytes], instruction: str, proprio: Sequence[Proprio] = ()
    ) -> list[float]:
        """What the algorithm's critic, if it has one, makes of S states of one task.

        Args:
            frames: [S * I] encoded images, one state's after another's.
            instruction: the task in words.
            proprio: [S], where the policy reads it.
        """
        spec = self._spec
        states = len(frames) // len(spec.cameras)
        observations = Observations(
            frames, [instruction] * states, self._processor, self._ranks.device, proprio
        )
        any_action = np.full((states, spec.tokens), spec.action_ids.start)
        features, *_ = self._pass(observations, any_action, factors=self.algorithm.view == "policy")
        values: list[float] = self.algorithm.values(features).tolist()
        return values

    def _look(self, observations: Observations, batch: Batch) -> Seen:
        """What the weights as they are make of the batch, without gradient, in as few passes as
        possible.
        """
        taken, view = batch.token_ids, self.algorithm.view
        shown = taken
        if view and self.algorithm.looks_at_ends:
            # Any action will do after a final state: what the critic sees comes before it.
            ends = len(batch.instructions) - len(taken)
            shown = np.concatenate([taken, np.full((ends, taken.shape[1]), taken.min())])
        if view == "base":
            features, reference, _ = self._pass(observations, shown, factors=False)
            _, logprobs, entropy = self._pass(observations, taken)
            return Seen(features, logprobs, entropy, reference[: len(taken)])
        features, logprobs, entropy = self._pass(observations, shown)
        held = self.algorithm.config.kl_coefficient > 0
        return Seen(
            features if view else None,
            logprobs[: len(taken)],
            entropy[: len(taken)],
            self._pass(observations, taken, factors=False)[1] if held else None,
        )

    def _pass(
        self, observations: Observations, actions: Indices, *, factors: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the policy, or the policy that training began with, makes of the first so many
        states, and of an action's tokens [S, K] in each.

        Returns:
            What the algorithm keeps of the states [S, F], of none where it asks for no view;
            log-probs and entropies [S, K] of the actions.
        """
        tokens, width = torch.from_numpy(actions), actions.shape[1]
        kept = self.algorithm.view == ("policy" if factors else "base")

        def row(seen: ObservationBatch, which: Indices) -> Tensor:
            own = tokens[torch.from_numpy(which)].to(self._ranks.device)
            states, *both = self.policy.look(seen, own, self._config.temperature, factors=factors)
            features = [self.algorithm.features(states)] if kept else []
            return torch.cat([*features, *both], dim=1)

        rows = self._rows(observations, len(actions), row)
        features, logprobs, entropy = rows.tensor_split((-2 * width, -width), dim=1)
        return features.contiguous(), logprobs, entropy

    def _rows(
        self,
        observations: Observations,
        states: int,
        row: Callable[[ObservationBatch, Indices], Tensor],
    ) -> Tensor:
        """What `row` makes of the first so many states, given some and their numbers, each computed
        on one rank: [states, ...] on the CPU.
        """
        config = self.algorithm.config
        lengths = self.policy.sequence_lengths(observations.prompt_lengths[:states])
        shares = self._ranks.share(
            np.arange(states),
            config.micro_batch,
            lengths=lengths,
            most_tokens=config.micro_batch_tokens,
        )
        # Nothing is looked at before all passes are on their way to the device.
        parts = [row(observations[one.samples], one.samples)[: one.counted] for one in shares]
        return self._ranks.gather(torch.cat(parts).cpu(), states, lengths=lengths)

    @property
    def logprob_gap_bound(self) -> float:
        """The `Parity.bound` that is no error yet."""
        return self._config.logprob_gap_bound or GAP_BOUNDS[self.dtype]

    def _check_parity(
        self, experience: Experience, batch: Batch, observations: Observations, logprobs: Tensor
    ) -> Parity:
        """Server against trainer, over the actions that the trainer's own version took."""
        fresh = batch.fresh
        if not fresh.any():
            return Parity(0.0, 0.0, 0.0, 0.0)
        parity = Parity.of((batch.server_logprobs - logprobs.numpy())[fresh])
        if excess := parity.excess(self.logprob_gap_bound):
            observations.forget()
            again = self._look(observations, batch).logprobs
            lengths = [len(one.steps) for one in experience.trajectories]
            disagreement = Disagreement(
                server=batch.server_logprobs[fresh],
                trainer=logprobs.numpy()[fresh],
                again=again.numpy()[fresh],
                token_ids=batch.token_ids[fresh],
                episodes=np.repeat(
                    [one.spec.episode_id for one in experience.trajectories], lengths
                )[fresh],
                places=np.concatenate([np.arange(length) for length in lengths])[fresh],
            )
            raise ParityError(excess, disagreement, self.logprob_gap_bound)
        return parity

    def snapshot(self) -> Snapshot:
        """Gathers all that was learned."""
        checksums = self._checksums()
        tensors = gathered(self.policy.named_parameters(), "policy")
        tensors |= self._update.optimizer.tensors("policy_optimizer")
        if not self._ranks.first:
            return Snapshot({}, checksums)
        tensors |= self.algorithm.tensors()
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
        self._update.optimizer.restore(tensors, "policy_optimizer")
        self.algorithm.restore(tensors)
