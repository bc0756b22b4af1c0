"""The policy and env services."""

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
    """Checkpoint of OpenVLA or OpenVLA-OFT, of any size: a folder, or `OWNER/NAME[@REVISION]` on
    the Hugging Face hub (docs/openvla.md, docs/openvla-oft.md). A run keeps the commit that a name
    was when it began."""
    addresses: str = "127.0.0.1:50051"
    """Where clients find the replicas: HOST:PORT, several with commas, or dns:///NAME:PORT."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights; auto: float16 on a GPU, float32 otherwise."""
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
                "16 bits"
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
    cameras: tuple[str, ...] | None = None
    """The scene's cameras that the policy is shown, in its order; none: those that it was trained
    with, by their names."""
    render_size: int = Field(default=256, ge=32, le=1024)
    """Side of a rendered frame in pixels."""
    crop: tuple[int, int, int, int] | None = None
    """Part of the upright frame that is kept: top, left, height, width in pixels; none: all."""
    action_repeat: int = Field(default=1, ge=1)
    """Control steps (at 20 Hz) for which each policy action is held."""
    replan_after: int | None = Field(default=None, ge=1)
    """Of a policy that answers several actions at once: those that are executed before it is asked
    again; none: all."""
    settle_steps: int = Field(default=10, ge=0)
    """No-op control steps after a reset, until objects rest. They don't count."""
    bddl_directories: dict[str, Path] = Field(default_factory=dict)
    """Suites of our own: name = folder of BDDL files."""
    recycle_episodes: int = Field(default=200, ge=1)
    """Episodes after which a simulator process is replaced."""
    cached_tasks: int = Field(default=1, ge=1)
    """Tasks whose scenes a simulator process keeps loaded, at 0.3 to 0.9 GB each."""
    step_timeout_seconds: float = Field(default=60.0, gt=0)
    """Time without an answer after which a simulator counts as hung. A chunk has one answer."""
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
    def _names_cameras_once(self) -> Self:
        named = self.cameras
        if named is not None and (not named or len(set(named)) < len(named)):
            raise ValueError(
                f"cameras are {list(named)}: name at least one, each once, or leave them out"
            )
        return self
