"""Training of the process reward model: `vlarl reward train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from vlarl.config.base import NAME_PATTERN, Section
from vlarl.config.labels import LabelConfig
from vlarl.config.learning import LoraConfig
from vlarl.config.sft import AugmentationConfig, FitConfig
from vlarl.config.tracking import LoggingConfig


class RewardDataConfig(Section):
    """What the reward model learns from."""

    datasets: tuple[Path, ...] = Field(min_length=1)
    """Datasets of demonstrations (`vlarl demos convert`), whose actions are labelled, and rollouts
    (`trainer.record_rollouts`): the last actions of successes, which lead to the goal, are positive
    (`labels.lead_seconds`), those of failures negative."""
    held_out: float = Field(default=0.2, ge=0, lt=1)
    """Share of each task's placements that is measured on and never learned from."""
    held_out_samples: int = Field(default=4000, ge=1)
    """Most held-out samples behind one measurement while training, evenly spread."""
    tail_seconds: float = Field(default=3.0, gt=0)
    """The last actions of a failed episode that are negatives."""
    perturbed: float = Field(default=0.3, ge=0, lt=1)
    """Share of the positives that are shown with a wrong action, as negatives, each time anew."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Memory for decoded frames; frames beyond it are decoded anew each time."""


class RewardModelConfig(Section):
    """A run of `vlarl reward train`."""

    example = "`vlarl reward train` takes a file of its own kind, as configs/reward-object.toml"
    name: str = Field(default="reward", pattern=NAME_PATTERN)
    """The run's id; with the time behind it, its folder's name where --run-dir gives none."""
    seed: int = Field(default=7, ge=0)
    """Seed of the held-out placements, the order of samples and what is drawn for them."""
    checkpoint: Path
    """What to start from, a folder or a name on the hub: an OpenVLA checkpoint, best the policy
    that has imitated the demonstrations; or any image-text-to-text model of the Hugging Face
    library, as it saves them, of which `mode` lora trains the language model."""
    policy: Path | None = None
    """OpenVLA checkpoint whose frames and action tokens are scored, where `checkpoint` is a model
    of another kind; what is served must be its policy, or one that was trained from it."""
    mode: Literal["full", "lora"] = "full"
    """What learns: all weights, or LoRA factors that are merged into the checkpoint written."""
    export: Literal["best", "last"] = "last"
    """Which weights become RUN/checkpoint: the last, or those of the lowest held-out loss, which
    comes long before successes and failures are told apart best (docs/reward.md)."""
    dtype: Literal["auto", "float32"] = "auto"
    """Data type of the passes; auto: bfloat16 on a GPU, float32 otherwise."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Newest checkpoints that are kept, beside the best."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch on a CPU; none: all cores."""
    data: RewardDataConfig
    """What is learned from."""
    labels: LabelConfig = LabelConfig()
    """What makes an action of a demonstration positive."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Changes of the frames that are learned from."""
    training: FitConfig = FitConfig()
    """The optimisation."""
    lora: LoraConfig = LoraConfig()
    """The factors, where `mode` is lora."""
    logging: LoggingConfig = LoggingConfig()
    """Where its curves are shown."""

    @property
    def scored_policy(self) -> Path:
        """The OpenVLA checkpoint whose actions are scored."""
        return self.policy or self.checkpoint
