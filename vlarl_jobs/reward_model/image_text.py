"""A Hugging Face image-text model as a reward model: LoRA factors on its language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlarl.config import LoraConfig, RewardModelConfig
from vlarl.data.pixels import Pixels
from vlarl.files import durable_folder
from vlarl.images import Frame, decode_image, prepare_image
from vlarl.learning.export import checkpoint_bytes, copy_but_weights
from vlarl.learning.factors import add_factors, named_factors
from vlarl.learning.ranks import Ranks
from vlarl.learning.sharding import compute_dtype, distribute, synchronise_gradients
from vlarl.models.network import ObservationBatch
from vlarl.models.process_reward.image_text import (
    ImageTextNetwork,
    ImageTextReader,
    load_image_text,
)
from vlarl.models.registry import POLICY, policy_spec
from vlarl.models.spec import PolicySpec
from vlarl.models.statistics import STATISTICS
from vlarl.weights.checkpoint import require_finite


class ImageTextProcessor:
    """Frames as the policy sees them, prompts as the image-text model reads them."""

    def __init__(self, checkpoint: Path, policy: PolicySpec, center_crop: bool) -> None:
        """Raises ConfigError where the processor can't be loaded."""
        self._size = policy.image_size
        self._center_crop = center_crop
        self._reader = ImageTextReader(checkpoint, policy.image_size)
        self.pad_id = self._reader.pad_id

    def frame(self, encoded: bytes) -> Frame:
        return prepare_image(decode_image(encoded), self._size, self._center_crop)

    def prompt(self, instruction: str) -> list[int]:
        return self._reader.prompt(instruction)


class ImageTextBackbone:
    """The model, frozen, and the factors, which alone are trained."""

    def __init__(self, config: RewardModelConfig, ranks: Ranks) -> None:
        """Loads the checkpoint and adds factors drawn with the seed, the same on every rank.

        Raises:
            ConfigError, CheckpointError: the checkpoint can't be used.
        """
        policy = policy_spec(config.scored_policy)
        reader = ImageTextReader(config.checkpoint, policy.image_size)
        dtype = compute_dtype(config.dtype, ranks.device)
        self.pixels = Pixels(None, config.augmentation, ranks.device)
        self._model = ImageTextNetwork(config.checkpoint, reader, policy, dtype, ranks.device)
        self._model.requires_grad_(False)
        wanted = language_layers(self._model.network)
        self._layers = add_factors(self._model.network, config.lora, config.seed, wanted)
        distribute(
            self._model, ranks, dtype, activation_checkpointing=config.activation_checkpointing
        )

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return named_factors(self._layers)

    def synchronise_gradients(self, on: bool) -> None:
        synchronise_gradients(self._model, on)

    def verdicts(self, observations: ObservationBatch, token_ids: Tensor) -> Tensor:
        logits: Tensor = self._model(
            observations.pixel_values.cpu().numpy(),
            observations.prompt_ids,
            observations.prompt_lengths,
            token_ids,
        )
        return logits


def language_layers(network: nn.Module) -> list[str]:
    """Every linear layer of the language model, by name. The towers stay as they are: of some
    models the last blocks are computed and never used, which sharding doesn't forgive.
    """
    inside = set(network.get_decoder().modules())  # type: ignore[operator]  # a PreTrainedModel
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module in inside
    ]


def export_image_text(
    config: RewardModelConfig,
    target: Path,
    factors: Mapping[str, Tensor],
    finish: Callable[[Path], None],
) -> None:
    """Writes the model with the factors merged into it, in the data type that it is stored in, its
    processor, and what the policy's action tokens are. The folder is whole, or not there.

    Args:
        config: names the model, the policy and the factors' scaling.
        target: folder to write; what is there is replaced.
        factors: "LAYER.A" and "LAYER.B".
        finish: adds to the folder before it appears under its name.

    Raises:
        NotFiniteError: a weight isn't finite.
        DiskFullError: there is no room. Either way `target` is as it was.
    """
    base = config.checkpoint
    model = load_image_text(base, "auto")
    merge(model, factors, config.lora)
    require_finite(str(target), model.named_parameters())
    with durable_folder(target, checkpoint_bytes(base)) as folder:
        copy_but_weights(base, folder)
        model.save_pretrained(folder)
        (folder / POLICY).mkdir()
        policy = json.loads((config.scored_policy / "config.json").read_bytes())
        policy["center_crop"] = config.augmentation.random_crop
        (folder / POLICY / "config.json").write_text(
            json.dumps(policy, indent=1) + "\n", encoding="utf-8"
        )
        statistics = config.scored_policy / STATISTICS
        if statistics.exists():
            shutil.copyfile(statistics, folder / POLICY / statistics.name)
        finish(folder)


@torch.no_grad()
def merge(model: nn.Module, factors: Mapping[str, Tensor], lora: LoraConfig) -> None:
    """W + (alpha / rank) * B @ A, computed in float32, for every layer that has factors."""
    scaling = lora.alpha / lora.rank
    for layer in language_layers(model):
        weight = model.get_parameter(f"{layer}.weight")
        added = scaling * (factors[f"{layer}.B"].float() @ factors[f"{layer}.A"].float())
        weight.copy_(weight.float() + added)
