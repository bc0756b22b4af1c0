"""Pretraining of vision: the towers and the projector learn to say where things are.

Towers from random weights learn little from action tokens alone. Here a head, thrown away
afterwards, regresses positions that the simulator knows. Its held-out error in millimetres also
tells whether a policy fails by what it sees or by what it was shown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vlarl.config import SftConfig
from vlarl.data.pixels import Pixels
from vlarl.data.samples import SampleBatch
from vlarl.learning.ranks import Ranks
from vlarl.learning.sharding import compute_dtype, distribute, synchronise_gradients
from vlarl.learning.trainable import trainable_model, trained_parameters
from vlarl.models.openvla.backbone import ImageEncoder, VisionLanguageModel
from vlarl.models.registry import policy_family
from vlarl_jobs.sft.losses import pose_loss
from vlarl_jobs.sft.reading import Demonstrations, require_poses

_CHANNELS = 16
_HIDDEN = 256
_LEAST_DEVIATION = 1e-3
"""In metres: of a thing that never moves nothing is to be learned."""


class PoseRegressor(ImageEncoder):
    """The model's image encoder, and a head on all patches of the main image together: where
    matters, so nothing is pooled.
    """

    def __init__(self, model: VisionLanguageModel, poses: int) -> None:
        """poses: numbers to regress."""
        super().__init__(model.vision_backbone, model.projector)
        width = model.feature_width
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, _CHANNELS)
        # Of one image: a policy may see several, and poses are told from the main one alone.
        self.hidden = nn.Linear(model.config.num_patches * _CHANNELS, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, poses)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels [B, 3 * towers, S, S] -> standardised poses float32 [B, P]."""
        patches = self.image_tokens(pixel_values)
        reduced = F.gelu(self.reduce(self.norm(patches))).flatten(1)
        predicted: Tensor = self.out(F.gelu(self.hidden(reduced)))
        return predicted.float()


class Perception:
    """The objective of pretraining."""

    def __init__(
        self, config: SftConfig, checkpoint: Path, demonstrations: Demonstrations, ranks: Ranks
    ) -> None:
        """Loads the checkpoint.

        Raises:
            DatasetError: the demonstrations come without poses.
        """
        require_poses(demonstrations.pose_names)
        self.train = demonstrations.train
        self.held_out = demonstrations.held_out
        self._names = demonstrations.pose_names
        normalize = policy_family(checkpoint).tower_pixels()
        self._pixels = Pixels(normalize, config.augmentation, ranks.device)
        mean = torch.from_numpy(np.nanmean(self.train.poses, axis=0))
        deviation = torch.from_numpy(np.nanstd(self.train.poses, axis=0))
        self._mean = mean.to(ranks.device)
        self._scale = deviation.clamp(min=_LEAST_DEVIATION).to(ranks.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            whole = trainable_model(checkpoint, torch.device("cpu"))
            assert isinstance(whole, VisionLanguageModel)  # noqa: S101 - as all families are
            self._model = PoseRegressor(whole, len(self._names)).to(ranks.device)
        distribute(
            self._model,
            ranks,
            compute_dtype(config.dtype, ranks.device),
            activation_checkpointing=config.activation_checkpointing,
        )

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return trained_parameters(self._model)

    def synchronise_gradients(self, on: bool) -> None:
        synchronise_gradients(self._model, on)

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        predicted = self._model(self._pixels.augmented(batch.frames, draws))
        return pose_loss(predicted, self._standardised(batch))

    def measure(self, batch: SampleBatch) -> Tensor:
        """Rows of loss, and distances in millimetres, NaN where a pose is unknown."""
        predicted = self._model(self._pixels.plain(batch.frames))
        wanted = self._standardised(batch)
        off = (predicted - wanted).abs() * self._scale * 1000
        return torch.cat([pose_loss(predicted, wanted)[:, None], off], dim=1)

    def summary(self, rows: Tensor) -> dict[str, float]:
        loss, *off = rows.double().nanmean(dim=0).tolist()
        metrics = {"held_out_loss": loss, "held_out_mm": float(np.nanmean(off))}
        for name, error in zip(self._names, off, strict=True):
            metrics[f"held_out_mm/{name}"] = error
        return metrics

    def _standardised(self, batch: SampleBatch) -> Tensor:
        return (batch.poses - self._mean) / self._scale
