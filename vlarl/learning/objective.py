"""What a stage of training optimises."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from vlarl.data.samples import SampleBatch, Samples


class Objective(Protocol):
    """A model with trained parameters, its loss, and what it is measured by."""

    train: Samples
    """What is learned from."""
    held_out: Samples
    """What is measured on."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, float32, sharded where the model is, by the names under which
        checkpoints hold them.
        """

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        """Loss [B] of samples on the model's device.

        draws: float32 [B, DRAWS], uniform in [0, 1): the only source of what is random.
        """

    def measure(self, batch: SampleBatch) -> Tensor:
        """What `summary` needs of samples on the model's device: [B, M]."""

    def summary(self, rows: Tensor) -> dict[str, float]:
        """Metrics of held-out samples, `held_out_loss` among them; rows: `measure`'s, [N, M]."""

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""
