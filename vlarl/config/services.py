"""The policy, env and reward services."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vlarl.config.base import Section

MIN_TEMPERATURE = 0.01
"""vLLM silently raises lower ones, and the log-probs would be another temperature's."""
MAX_TEMPERATURE = 2.0
"""vLLM refuses higher ones."""


class PolicyConfig(Section):
    """The policy server and its engine."""

    checkpoint: Path = Path("checkpoints/tiny")
    """OpenVLA checkpoint: the original format, any size."""
    addresses: str = "127.0.0.1:50051"
    """Where clients find the replicas: HOST:PORT, several with commas, or dns:///NAME:PORT."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the weights; auto: bfloat16 on a GPU, float32 otherwise."""
    exact_float32: bool = False
    """With dtype = "float32" on a GPU: keep Triton's attention and NVIDIA's libraries from rounding
    to TF32, which has 10 bits of mantissa; docs/parity.md."""
    center_crop: bool | None = None
    """Centre crop of images; none: as the checkpoint says."""
    max_observations: int = Field(default=64, ge=1)
    """Most observations in one request."""
    max_batch: int = Field(default=64, ge=1)
    """Most actions that the engine computes at once."""
    kv_cache_mib: int | None = Field(default=None, ge=16)
    """Memory of the engine's KV cache; none: what `max_batch` actions need."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Threads of the engine on a CPU, and of merging an adapter; none: vLLM's own choice, and for
    merging all that the process may use."""
    trainer_address: str | None = None
    """Trainer to ask for the latest adapter before reporting ready, and now and then."""
    catch_up_seconds: float = Field(default=30.0, gt=0)
    """Time between two questions to the trainer: a replica that a publication missed, because it
    had no name yet, say, is behind for that long."""

    @model_validator(mode="after")
    def _exactness_is_of_float32(self) -> Self:
        if self.exact_float32 and self.dtype != "float32":
            raise ValueError(
                f'exact_float32 needs dtype = "float32": with "{self.dtype}" a GPU computes in '
                "bfloat16"
            )
        return self


class EnvConfig(Section):
    """The simulators and the worker that drives them."""

    processes: int = Field(default=2, ge=1)
    """Simulators of this server, one process each."""
    concurrent_steps: int | None = Field(default=None, ge=1)
    """Simulators that compute a step at once, the others in turn; none: one more than there are
    cores where software draws, all of them on GPUs."""
    profile: Literal["faithful", "fast"] = "faithful"
    """faithful: the published numbers' physics and pixels; fast: see docs/simulator.md."""
    cameras: tuple[str, ...] = ("agentview",)
    """Cameras rendered; the policy sees the first."""
    render_size: int = Field(default=256, ge=32, le=1024)
    """Side of a rendered frame in pixels."""
    crop: tuple[int, int, int, int] | None = None
    """Part of the upright frame that is kept: top, left, height, width in pixels; none: all."""
    action_repeat: int = Field(default=1, ge=1)
    """Control steps (at 20 Hz) for which each policy action is held."""
    settle_steps: int = Field(default=10, ge=0)
    """No-op control steps after a reset, until objects rest. They don't count."""
    bddl_directories: dict[str, Path] = Field(default_factory=dict)
    """Suites of our own: name = folder of BDDL files."""
    recycle_episodes: int = Field(default=200, ge=1)
    """Episodes after which a simulator process is replaced."""
    cached_tasks: int = Field(default=1, ge=1)
    """Tasks whose scenes a simulator process keeps loaded, at 0.3 to 0.75 GB each."""
    step_timeout_seconds: float = Field(default=60.0, gt=0)
    """Time without an answer after which a simulator counts as hung."""
    construct_timeout_seconds: float = Field(default=300.0, gt=0)
    """The same while a simulator is being constructed, and in a new one's first control step, which
    compiles some of robosuite."""
    simulator_restarts: int = Field(default=2, ge=0)
    """Replacements of its simulator that one episode survives before it is handed back."""
    policy_patience_seconds: float = Field(default=120.0, gt=0)
    """Time for which an episode waits for a policy that doesn't answer."""
    external_processes: int = Field(default=1, ge=0)
    """Of the simulators, those that external clients may hold through Interact at once."""
    external_idle_seconds: float = Field(default=300.0, gt=0)
    """Silence after which an external client loses its simulator."""

    @model_validator(mode="after")
    def _crop_lies_within_the_frame(self) -> Self:
        if self.crop is not None:
            top, left, height, width = self.crop
            fits = top + height <= self.render_size and left + width <= self.render_size
            if min(top, left) < 0 or min(height, width) < 1 or not fits:
                raise ValueError(
                    f"crop (top, left, height, width) {self.crop} must lie within the frame of "
                    f"{self.render_size} x {self.render_size} pixels"
                )
        return self

    @model_validator(mode="after")
    def _names_a_camera(self) -> Self:
        if not self.cameras:
            raise ValueError("cameras must name at least one: the policy sees the first")
        return self


class RewardConfig(Section):
    """The reward server."""

    model: Literal["outcome", "rprm"] = "outcome"
    """outcome: 1 at the step that solved the task, 0 elsewhere. rprm: that, and what a process
    reward model says of each step."""
    success_reward: float = 1.0
    """Reward of success."""
    batch_trajectories: int = Field(default=8, ge=1)
    """Most trajectories scored at once."""
    checkpoint: Path | None = None
    """The process reward model, a folder that `vlarl reward train` wrote. Another one put in its
    place is taken up between two batches."""
    coefficient: float = Field(default=0.1, ge=0)
    """c of r = sparse + c * dense."""
    form: Literal["additive", "potential"] = "additive"
    """What dense is. additive: P(the action leads somewhere), the paper's; potential: gamma * P of
    the next state - P of this one, P being the model's word before any action and gamma the
    trainer's discount, which no loitering can farm (Ng et al., 1999). See docs/decisions/0014."""
    watch_episodes: int = Field(default=200, ge=30)
    """Latest training episodes over which the trainer correlates sums of additive rewards with
    success: where they part, the policy farms the model."""
    warn_below: float = Field(default=0.1, ge=-1, le=1)
    """Correlation below which the run's log warns."""
    stop_below: float | None = Field(default=None, ge=-1, le=1)
    """Correlation below which the run stops, of the additive form; none: it goes on."""
    batch_steps: int = Field(default=64, ge=1)
    """Steps, of any trajectories, in one forward pass."""
    dtype: Literal["auto", "float32"] = "auto"
    """Data type of the passes; auto: bfloat16 on a GPU, float32 otherwise."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch on a CPU; none: all cores."""

    @model_validator(mode="after")
    def _model_has_a_checkpoint(self) -> Self:
        if self.model == "rprm" and self.checkpoint is None:
            raise ValueError(
                'reward.model = "rprm" needs reward.checkpoint, a folder that `vlarl reward train` '
                "wrote"
            )
        return self

    @model_validator(mode="after")
    def _only_what_can_be_farmed_is_watched(self) -> Self:
        if self.form == "potential" and self.stop_below is not None:
            raise ValueError(
                "reward.stop_below is a correlation of additive rewards; with reward.form = "
                '"potential" there is nothing to farm, so leave it out'
            )
        return self
