"""The trainer: tasks, curriculum, PPO, LoRA, critic, evaluation. Defaults are the paper's where it
has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlarl.config.base import Section
from vlarl.config.services import MAX_TEMPERATURE, MIN_TEMPERATURE

Ratio = Literal["token", "step", "action"]
"""Whose probabilities are compared: of tokens, of control steps, or of whole answers, which of a
policy without chunks are for one control step.
"""
Correction = Literal["server", "decoupled"]
"""What an action that other weights sampled is compared with."""
Schedule = Literal["constant", "linear", "cosine"]
"""What a learning rate does while a training goes on: stay, or fall to 0."""


class TasksConfig(Section):
    """What is trained on."""

    suite: str = "libero_spatial"
    """libero_spatial, libero_object, libero_goal, libero_10, libero_90, or a suite of our own."""
    indices: tuple[int, ...] = (0,)
    """Tasks of the suite, from 0."""
    max_actions: int = Field(default=0, ge=0)
    """Most policy actions of an episode; 0: the suite's own step limit."""


class CurriculumConfig(Section):
    """How often each task is trained on, from how well it went lately."""

    kind: Literal["paper", "frontier", "uniform"] = "paper"
    """paper: P ~ exp((0.5 - s) / tau) of recent success s, the hardest tasks most; frontier:
    P ~ exp(-|0.5 - s| / tau), tasks near 50 % most; uniform: all alike."""
    tau: float = Field(default=1.0, gt=0)
    """Temperature of the formula: small is sharp, large is uniform."""
    window: int = Field(default=50, ge=1)
    """Latest episodes of a task that its recent success is taken over; 0.5 before the first."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Least probability of a task, as a share of what it has when all are drawn alike."""


class LoraConfig(Section):
    """The adapter that is trained."""

    rank: int = Field(default=32, ge=1)
    """Rank of the factors."""
    alpha: float = Field(default=16.0, gt=0)
    """W = W0 + alpha / rank * B @ A."""


class CriticConfig(Section):
    """The value head on what the policy makes of a state, as it was before training or as it is."""

    former_defaults: ClassVar[Mapping[str, object]] = {"features": "base"}
    """As `AlgorithmConfig.former_defaults`."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the MLP's hidden layers."""
    features: Literal["base", "policy"] = "policy"
    """Whose view of a state the critic sees. policy: the policy's as it is, from the pass that
    computes log-probs; base: the policy's before it was trained, in a pass of its own. See
    docs/decisions/0020."""
    patch_channels: int = Field(default=0, ge=0)
    """Numbers of each image patch, random projections of the projector's output, that the critic
    sees beside the hidden state; 0: the hidden state alone, the paper's. See
    docs/decisions/0011."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """AdamW's rate."""
    clip: float = Field(default=0.2, ge=0)
    """Value clipping; 0: off."""
    gae_lambda: float | None = Field(default=None, ge=0, le=1)
    """Lambda of the returns that the critic learns; none: the policy's. 1: what was really
    returned, free of the critic's own errors (VC-PPO, arXiv 2503.01491)."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over a batch; none: as many as the policy's. Features are cached, so a pass costs
    next to nothing."""
    warmup_iterations: int = Field(default=5, ge=0)
    """Iterations in which the critic learns alone."""
    warmup_epochs: int = Field(default=1, ge=1)
    """Epochs of the critic in each of these."""


class AlgorithmConfig(Section):
    """What every algorithm's section has."""

    learning_rate: float = Field(default=2e-5, ge=0)
    """AdamW's rate for the adapter. 0 changes nothing: a check of all that comes before a step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the rate rises from near 0: the first ones have the largest KL."""
    schedule: Schedule = "constant"
    """What the rate does over the run's iterations: stay, or fall to 0 along a line or a cosine."""
    one_step_ratio: ClassVar[Ratio] = "action"
    """What `ratio` is where it is left open, of a policy that answers one control step."""
    ratio: Ratio | None = None
    """Probability ratio of tokens, of control steps, or of the policy's whole answers. None: token,
    where an answer is for several control steps; else action, the paper's, by PPO, and token, the
    field's, by groups."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to 1 - clip_low from below."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped to 1 + clip_high from above."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount of a policy action. An answer of several is discounted by as many as were
    executed."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a batch."""
    mini_batch: int = Field(default=64, ge=1)
    """Answers of the policy behind one optimizer step, over all ranks."""
    micro_batch: int = Field(default=32, ge=1)
    """Most answers in one pass of one rank."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens in one pass of one rank, of images, prompt and answer, padding included; an
    answer is never cut. None: only `micro_batch` bounds a pass."""
    kl_stop: float = Field(default=0.1, ge=0)
    """Approximate KL of an answer, from where the update began, above which it ends, without a
    further step; 0: never. A chunk of eight steps has about eight times a single step's."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL from the policy that training began with, added to the loss of each answer.
    Above 0 its log-probs are computed for each batch."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""

    @property
    def limit_is_terminal(self) -> bool:
        """Whether nothing follows an episode that ended by its step limit."""
        return True

    @property
    def former_defaults(self) -> Mapping[str, object]:
        """What runs were saved with where nothing was set, of keys whose default has changed."""
        return {"ratio": self.one_step_ratio}

    def ratio_for(self, chunk: int) -> Ratio:
        """`ratio`, or what it is of a policy that answers so many control steps."""
        return self.ratio or ("token" if chunk > 1 else self.one_step_ratio)

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Self:
        if self.micro_batch > self.mini_batch:
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must not exceed mini_batch ({self.mini_batch})"
            )
        return self


class PpoConfig(AlgorithmConfig):
    """Proximal policy optimisation, with a critic (`trainer.critic`)."""

    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation."""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """What an episode's end by its step limit means. bootstrap: it was only cut off, and the value
    of its last state stands for what would have followed; terminal: it failed, as the benchmark
    counts. See docs/decisions/0010."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and deviation 1 over the whole batch of all ranks."""
    whiten_floor: float = Field(default=0.02, ge=0)
    """Least deviation of advantages that whitening scales to 1, as a share of
    `reward.success_reward`. A batch without a success has a deviation of some 0.003, the critic's
    noise, which would be learned from like successes; one success among 20,000 actions has more
    than 0.02."""

    @property
    def limit_is_terminal(self) -> bool:
        """Whether nothing follows an episode that ended by its step limit."""
        return self.time_limit == "terminal"


class GroupsConfig(AlgorithmConfig):
    """What algorithms have in common that compare episodes of one placement with each other, and
    need no critic for it. An episode's end by its step limit is a failure to them.
    """

    group_size: int = Field(default=8, ge=2)
    """Episodes that share task, placement and policy version, and differ in their sampling."""
    keep_between: tuple[float, float] = (0.1, 0.9)
    """Mean success of groups that are learned from, both bounds included. Of the others little is
    to be learned: they are dropped and ordered anew, on other placements. [0, 1] keeps all."""
    max_attempts: int = Field(default=4, ge=1)
    """Orders of a group, the first included, after which a batch does without it."""
    credit: Literal["episode", "to_go"] = "episode"
    """What of an episode is compared within its group. episode: its return, for all its actions;
    to_go: for each action the return from there on, which dense rewards are for."""
    average: Literal["episodes", "actions"] = "episodes"
    """Over what the loss is averaged. episodes: over each one's executed actions first, so that all
    weigh the same, as SimpleVLA-RL and RLinf do; actions: over the batch's, so that long ones weigh
    more."""
    one_step_ratio: ClassVar[Ratio] = "token"
    clip_high: float = Field(default=0.28, gt=0)
    """The ratio is clipped to 1 + clip_high from above."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a policy action."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        low, high = self.keep_between
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"keep_between [{low:g}, {high:g}] has to be two shares, the smaller first, such "
                "as [0.1, 0.9]"
            )
        size = self.group_size
        if not any(low <= successes / size <= high for successes in range(size + 1)):
            raise ValueError(
                f"keep_between [{low:g}, {high:g}] holds no share that {size} episodes "
                "(group_size) can have: widen it"
            )
        return self


class GrpoConfig(GroupsConfig):
    """Group relative policy optimisation (arXiv 2402.03300)."""

    divide_by_deviation: bool = True
    """Divide by the deviation of the group's returns; false: "Dr. GRPO" (arXiv 2503.20783)."""
    deviation_floor: float = Field(default=0.02, ge=0)
    """Least deviation that is divided by, as a share of `reward.success_reward`: what differs less
    is noise of dense rewards, and isn't blown up to the size of a success."""


class RlooConfig(GroupsConfig):
    """REINFORCE, each episode against the mean of the others of its group (arXiv 2402.14740)."""


class EvaluationConfig(Section):
    """Greedy episodes on official initial states."""

    episodes_per_task: int = Field(default=50, ge=0, le=100)
    """Initial states of each task, from the first; 0: no evaluation. LIBERO has 50, reach 100."""
    at_start: bool = False
    """Evaluate before the first iteration: where training starts from."""
    at_end: bool = True
    """Evaluate when training is done."""
    every_iterations: int = Field(default=0, ge=0)
    """Evaluate also after every so many iterations; 0: never."""
    every_env_steps: int = Field(default=0, ge=0)
    """Evaluate also after the iteration in which the control steps of training reach another
    multiple of this; 0: never."""

    @property
    def periodic(self) -> bool:
        """Whether a run is evaluated again and again."""
        return self.episodes_per_task > 0 and bool(self.every_iterations or self.every_env_steps)

    @property
    def states_needed(self) -> int:
        """Official initial states that each task must have; 0 where a run never evaluates."""
        ever = self.at_start or self.at_end or self.every_iterations or self.every_env_steps
        return self.episodes_per_task if ever else 0


class TrainerConfig(Section):
    """The training loop."""

    address: str = "127.0.0.1:50054"
    """HOST:PORT on which the trainer's own service listens."""
    algorithm: Literal["ppo", "grpo", "rloo"] = "ppo"
    """How a batch is learned from; the section of the same name has its keys. ppo: against a
    critic's values; grpo, rloo: episodes of a group against each other."""
    iterations: int = Field(default=100, ge=1)
    """Iterations of the whole run."""
    episodes_per_iteration: int = Field(default=10, ge=1)
    """Episodes of one batch; of groups, a multiple of their size."""
    temperature: float = Field(default=1.5, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """Sampling temperature, in rollout and learning alike, within what the policy server takes:
    0.01 to 2."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the computation; auto: float16 on a GPU, float32 otherwise. An update reaches
    the policy sooner in float16 than in bfloat16, see docs/decisions/0017. Use the policy's."""
    logprob_gap_bound: float | None = Field(default=None, gt=0)
    """Bound on the difference between the server's and the trainer's log-probs of fresh tokens, in
    nats: 99.9 % of them must be within it, their mean within a quarter, and k3 within half its
    square, or the run stops. None: 1e-4 in float32, 0.05 in float16, 0.3 in bfloat16."""
    merged_check: Literal["off", "sampled", "full"] = "sampled"
    """Of how many layers server and trainer compare the merged weights at each publication, by
    checksums; sampled: an eighth, others each time."""
    merged_digest: Literal["require", "report"] = "require"
    """What unequal merged weights do. On one machine both sides agree to the bit; across different
    hardware `report` logs it and leaves parity to `logprob_gap_bound`."""
    rollout_timeout_seconds: float = Field(default=3600.0, gt=0)
    """Time without a finished episode after which the run stops and says so."""
    publish_timeout_seconds: float = Field(default=900.0, gt=0)
    """Time within which every policy replica must serve a new version."""
    staleness: int = Field(default=0, ge=0)
    """Policy versions that an action may be behind the one that learns from it. 0: episodes are
    collected, then learned from; N: the next N batches are ordered meanwhile. Episodes that are
    older when they are due are dropped and ordered anew, groups as a whole."""
    correction: Correction = "server"
    """What an action that other weights sampled is compared with. server: the log-probs that the
    policy server reported, where its weights are gone; decoupled: always those at the update's
    start, each sample weighed by how much more likely these are than the server's
    (docs/decisions/0022)."""
    correction_cap: float = Field(default=2.0, gt=0)
    """Most that the decoupled correction weighs a sample by."""
    memory_gib: float | None = Field(default=None, gt=0)
    """GiB that a rank may take of its GPU; none: half of it, as policy server and simulators may be
    there, too. On a CPU: of the machine's memory. The next two keys follow it, by arithmetic
    (docs/sizing.md)."""
    sharding: Literal["auto", "replicate", "shard"] = "auto"
    """Where frozen weights lie. replicate: whole on each rank; shard: in parts, put together layer
    by layer in every pass; auto: whole where they fit."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass instead of keeping them: less memory, and a
    third more operations in the update. auto: where keeping them doesn't fit, not even with smaller
    micro-batches, down to 4,096 tokens."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept, beside the best by evaluation."""
    stop_at_success: float | None = Field(default=None, gt=0, le=1)
    """Share of greedy episodes whose success ends the run, at an evaluation before its last
    iteration; none: all iterations are done."""
    rollback: int = Field(default=0, ge=0)
    """Evaluations in a row, each below the best by more than both 95 % intervals, after which the
    run goes back to the best checkpoint; 0: never. See docs/long-runs.md."""
    rollback_rate: float = Field(default=0.5, gt=0, le=1)
    """What each such return multiplies the policy's learning rate by."""
    record_rollouts: bool = False
    """Keep all training episodes, failures too, as a dataset in RUN/rollouts."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch on a CPU; none: all cores."""
    ranks: int = Field(default=1, ge=1)
    """Processes of the trainer that `vlarl up` starts (with torchrun), one a GPU."""
    ppo: PpoConfig = PpoConfig()
    """PPO's."""
    grpo: GrpoConfig = GrpoConfig()
    """GRPO's."""
    rloo: RlooConfig = RlooConfig()
    """RLOO's."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    critic: CriticConfig = CriticConfig()
    """PPO's critic."""

    @property
    def chosen(self) -> AlgorithmConfig:
        """The section of the algorithm that learns."""
        section = getattr(self, self.algorithm)
        assert isinstance(section, AlgorithmConfig)  # noqa: S101 - a field is named after each
        return section

    @property
    def groups(self) -> GroupsConfig | None:
        """The chosen section, where its algorithm compares episodes of a group."""
        chosen = self.chosen
        return chosen if isinstance(chosen, GroupsConfig) else None

    @model_validator(mode="after")
    def _keys_are_the_algorithms(self) -> Self:
        """Keys that another algorithm reads would be set in vain."""
        sections: dict[str, CriticConfig | AlgorithmConfig] = {}
        if self.algorithm != "ppo":
            sections["critic"] = self.critic
        for name in type(self).model_fields:
            section = getattr(self, name)
            if isinstance(section, AlgorithmConfig) and name != self.algorithm:
                sections[name] = section
        for name, section in sections.items():
            for key, field in type(section).model_fields.items():
                default = field.get_default(call_default_factory=True)
                if getattr(section, key) not in (
                    default,
                    section.former_defaults.get(key, default),
                ):
                    shared = isinstance(section, AlgorithmConfig)
                    known = shared and key in type(self.chosen).model_fields
                    there = f"move it to [trainer.{self.algorithm}], or " if known else ""
                    raise ValueError(
                        f"{name}.{key} is read by another algorithm than algorithm = "
                        f'"{self.algorithm}": {there}leave it out'
                    )
        return self

    @model_validator(mode="after")
    def _groups_fill_a_batch(self) -> Self:
        if (groups := self.groups) and self.episodes_per_iteration % groups.group_size:
            raise ValueError(
                f"episodes_per_iteration ({self.episodes_per_iteration}) has to be a multiple of "
                f"{self.algorithm}.group_size ({groups.group_size}): a batch is of whole groups"
            )
        return self
