"""Supervised fine-tuning: `vlarl sft`. Defaults are OpenVLA's where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vlarl.config.base import NAME_PATTERN, Section
from vlarl.config.learning import LoraConfig, Schedule
from vlarl.config.tracking import LoggingConfig

NO_TOKENS_READ = (
    "it is noise on action tokens after which others are predicted, and the policy reads none: "
    "set it to 0"
)
"""Why `input_sigma` is refused."""


class TinyModelConfig(Section):
    """A new tiny model to start from, with random weights."""

    image_size: int = Field(default=84, ge=14, multiple_of=14)
    """Side of the frame in pixels that the model sees; a multiple of the patch size, 14."""
    tower_dim: int = Field(default=64, ge=16, multiple_of=16)
    """Width of each of the two vision towers."""
    tower_depth: int = Field(default=3, ge=2)
    """Blocks of each tower; the last one is stored, never computed, as in the original."""
    text_dim: int = Field(default=128, ge=32, multiple_of=32)
    """Width of the language model; heads are 32 wide."""
    text_layers: int = Field(default=2, ge=1)
    """Layers of the language model."""


class FamilyConfig(Section):
    """The family that the model to start from becomes one of. Its towers and its language model
    stay. What it reads beside is new.
    """

    name: Literal["openvla_oft"] = "openvla_oft"
    """OpenVLA-OFT: a chunk of control steps from one pass."""
    chunk: int = Field(default=8, ge=1)
    """Actions of one answer."""
    convention: Literal["stop", "no_stop"] = "stop"
    """Whether a stop token follows the placeholders, as in openvla-oft, or nothing does, as in
    RLinf's own."""
    cameras: tuple[str, ...] = Field(default=("agentview",), min_length=1, max_length=8)
    """Names of the cameras that it sees, the main one first; the datasets must have them."""
    proprio: int = Field(default=0, ge=0)
    """Numbers of proprioception that it reads, 8 on LIBERO; 0: none."""

    @model_validator(mode="after")
    def _cameras_differ(self) -> Self:
        if len({*self.cameras}) != len(self.cameras) or not all(self.cameras):
            raise ValueError(f"cameras: name each once, not {', '.join(self.cameras)}")
        return self


class DataConfig(Section):
    """Demonstrations."""

    datasets: tuple[Path, ...] = Field(min_length=1)
    """Folders that `vlarl demos` wrote; all of their tasks are learned together."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of each task's episodes that is measured on and never learned from."""
    held_out_samples: int = Field(default=2000, ge=1)
    """Most held-out samples behind one measurement, evenly spread."""
    statistics: Literal["dataset", "checkpoint"] = "dataset"
    """Whose action statistics normalise: the demonstrations' own, computed suite by suite, or
    those that the checkpoint has for the suite already."""
    range_floor: float = Field(default=0.1, ge=0)
    """Least distance of q01 and q99, in the actions' units: a dimension that hardly moves would
    otherwise spread its noise over all bins."""
    partial_chunks: bool = False
    """Of a policy that answers chunks: learn also from samples so near to their episode's end that
    it has only a part of the chunk. Steps after the end carry no loss. False: as openvla-oft, whole
    chunks only."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Memory for decoded frames; frames beyond it are decoded anew each time."""


class AugmentationConfig(Section):
    """Changes of the frames that are learned from. Defaults are OpenVLA's."""

    random_crop: bool = True
    """Crop 90 % of the area at random and stretch it back. The checkpoint then asks for the centre
    crop wherever it acts."""
    brightness: float = Field(default=0.2, ge=0, le=1)
    """Largest shift of brightness, of a range of 1; 0: off."""
    contrast: float = Field(default=0.2, ge=0, lt=1)
    """Largest relative change of contrast; 0: off."""
    saturation: float = Field(default=0.2, ge=0, lt=1)
    """Largest relative change of saturation; 0: off."""
    hue: float = Field(default=0.05, ge=0, le=0.5)
    """Largest turn of the hue, in turns; 0: off."""


class FitConfig(Section):
    """Optimisation of one stage."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    mini_batch: int = Field(default=128, ge=1)
    """Samples behind one optimizer step, over all ranks."""
    micro_batch: int = Field(default=16, ge=1)
    """Samples in one forward and backward pass of one rank; gradients are accumulated."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """AdamW's highest rate."""
    schedule: Schedule = "constant"
    """What the rate does after the warm-up: stay, or fall to 0 along a line or a cosine."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    evaluate_every: int = Field(default=200, ge=1)
    """Steps between two measurements on held-out samples, each followed by a checkpoint."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of metrics."""

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.micro_batch > self.mini_batch:
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must not exceed mini_batch ({self.mini_batch})"
            )
        return self


class SimulationConfig(Section):
    """The policy in the simulator while it is being fine-tuned, as `vlarl eval` would run it."""

    config: Path
    """A run's TOML file, e.g. configs/reach.toml: its tasks, simulators and policy server are
    taken; its checkpoint is not."""
    every_steps: int = Field(default=1000, ge=1)
    """Steps of the training between two evaluations, a multiple of `training.evaluate_every`;
    there is one after the last step, too."""
    episodes_per_task: int = Field(default=10, ge=1, le=100)
    """Official initial states of a task."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE changes of that configuration, as `--set` takes them: `["env.profile=fast"]`."""


class SftConfig(Section):
    """A run of supervised fine-tuning."""

    example = "`vlarl sft` takes a file of its own kind, as configs/sft-reach.toml"
    name: str = Field(default="sft", pattern=NAME_PATTERN)
    """The run's id; with the time behind it, its folder's name where --run-dir gives none."""
    seed: int = Field(default=7, ge=0)
    """Seed of new weights, the held-out episodes, the order of samples and their augmentation."""
    checkpoint: Path | None = None
    """Checkpoint of OpenVLA or OpenVLA-OFT to start from, a folder or a name on the hub; or give
    `[model]`."""
    mode: Literal["full", "lora"] = "full"
    """What learns: all weights, or LoRA factors that are merged into the checkpoint written."""
    target_sigma: float = Field(default=0.0, ge=0)
    """Deviation, in bins, of the Gaussian that softens each target token; 0: one-hot, OpenVLA's."""
    input_sigma: float = Field(default=0.0, ge=0)
    """Deviation, in bins, of Gaussian noise on the action tokens that later ones are predicted
    after: a policy that acts reads its own tokens there, not the expert's. 0: none, OpenVLA's."""
    export: Literal["best", "last"] = "best"
    """Which weights become RUN/checkpoint: those of the lowest held-out loss, or the last."""
    dtype: Literal["auto", "float32"] = "auto"
    """Data type of the passes; auto: bfloat16 on a GPU, float32 otherwise."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Newest checkpoints that are kept, beside the best."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch on a CPU; none: all cores."""
    model: TinyModelConfig | None = None
    """A new tiny model to start from, instead of `checkpoint`."""
    family: FamilyConfig | None = None
    """Makes `checkpoint`, an OpenVLA, or the new model one of another family. None: it is what it
    is."""
    data: DataConfig
    """Demonstrations."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Changes of the frames that are learned from."""
    pretrain: FitConfig | None = None
    """Before anything else, the vision towers and the projector learn to say where things are
    (the demonstrations' poses): for towers that start from random weights. None: no such stage."""
    training: FitConfig = FitConfig()
    """The fine-tuning itself."""
    lora: LoraConfig = LoraConfig()
    """The factors, where `mode` is lora."""
    logging: LoggingConfig = LoggingConfig()
    """Where its curves are shown."""
    simulation: SimulationConfig | None = None
    """Successes in the simulator now and then, through the real services. None: no such thing."""

    @model_validator(mode="after")
    def _is_simulated_where_it_is_saved(self) -> Self:
        measured = self.training.evaluate_every
        if self.simulation is not None and self.simulation.every_steps % measured:
            raise ValueError(
                f"simulation.every_steps ({self.simulation.every_steps}) must be a multiple of "
                f"training.evaluate_every ({measured}): a checkpoint is what is evaluated"
            )
        return self

    @model_validator(mode="after")
    def _starts_from_one_model(self) -> Self:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("name one model to start from: either checkpoint or [model]")
        if self.model is not None and self.data.statistics == "checkpoint":
            raise ValueError(
                "a new [model] has no statistics of its own: leave data.statistics at dataset"
            )
        return self

    @model_validator(mode="after")
    def _family_can_be_learned(self) -> Self:
        if self.family is None:
            return self
        if self.input_sigma:
            raise ValueError(f"input_sigma: {NO_TOKENS_READ}")
        if self.family.proprio and self.data.statistics == "checkpoint":
            raise ValueError(
                "an OpenVLA has no statistics of proprioception: leave data.statistics at dataset, "
                "or set family.proprio to 0"
            )
        return self
