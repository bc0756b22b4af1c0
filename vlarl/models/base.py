"""What a policy family is: one checkpoint, with everything that depends on which policy it is.

    folder ──▶ registry ──▶ PolicyFamily ──▶ spec            observations and actions
                                         ├─▶ processor()     frames, prompts, tokens    numpy
                                         ├─▶ network()       what is trained            torch
                                         ├─▶ imitation_losses()                         torch
                                         └─▶ serving()       what vLLM is told          vLLM

A family is a folder beside this file, and a line in registry.py. Parts are imported when they are
asked for, because torch and vLLM take a while to load.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vlarl.errors import ConfigError
from vlarl.images import Frame
from vlarl.models.serving import Encoded, Observation, SampledAction
from vlarl.models.spec import PolicySpec
from vlarl.models.statistics import ActionStats

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from vlarl.config import PolicyConfig
    from vlarl.models.network import ObservationBatch, PolicyNetwork
    from vlarl.models.openvla.config import OpenVLAConfig
    from vlarl.models.openvla.tokens import ActionTokenizer


class Processor(Protocol):
    """A checkpoint's way from observations to inputs, and between actions and tokens."""

    spec: PolicySpec
    center_crop: bool
    """Whether frames are cropped to their centre, where an observation doesn't say."""
    pad_id: int
    """Fills prompts up on the right."""

    def frame(self, encoded: bytes, center_crop: bool | None = None) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Raises:
            ImageError: the bytes are no image.
        """

    def prompt(self, instruction: str) -> list[int]:
        """Prompt ids."""

    def proprioception(self, values: ArrayLike, key: str = "") -> NDArray[np.float64]:
        """Proprioception [..., P] in the units of a dataset, named as `PolicySpec.unnorm_key`
        takes it, normalised.

        Raises:
            ConfigError: no key fits.
            ObservationError: the policy reads none, another number, or only finite ones.
        """

    def encode(self, observation: Observation) -> Encoded:
        """An observation as the engine takes it.

        Raises:
            ImageError: an image's bytes are none.
            ObservationError: something that the policy reads is missing, or can't be read.
        """

    def tokens(self, actions: ArrayLike, statistics: ActionStats) -> NDArray[np.int64]:
        """Ids int64 [..., K] of answers in the statistics' units.

        Raises:
            ValueError: a number is NaN, or an answer has another shape.
        """

    def actions(self, token_ids: ArrayLike, statistics: ActionStats) -> NDArray[np.float64]:
        """What ids [..., K] mean, in the statistics' units: float64 [..., D], of chunks
        [..., C, D].

        Raises:
            ValueError: an id is not an action id, or an answer has another number of them.
        """

    def batch(
        self,
        frames: NDArray[np.uint8],
        prompts: Sequence[Sequence[int]],
        device: torch.device,
        proprio: NDArray[np.float64] | None = None,
    ) -> ObservationBatch:
        """Inputs of B observations: prepared frames [B, I, S, S, 3], prompts' ids, and normalised
        proprioception [B, P] where the policy reads it.
        """


class Serving(ABC):
    """What vLLM's engine is told, given and asked for."""

    runner: ClassVar[Literal["generate", "pooling"]]
    """generate: an answer is one request of as many tokens; pooling: it comes from one pass."""
    settings: ClassVar[Sequence[str]]
    """Names of the files that the engine's model is made from, beside the weights."""

    @abstractmethod
    def engine_args(self, config: PolicyConfig, itemsize: int) -> dict[str, Any]:
        """The arguments of the engine that depend on the network, by name.

        Args:
            config: how many requests run at once, and how large the cache is if that is set.
            itemsize: bytes of a number.
        """

    @abstractmethod
    def prompt(self, encoded: Encoded, name: str) -> Any:  # noqa: ANN401 - vLLM's
        """One observation as vLLM takes it; name: unique, of its images in the engine's cache."""

    @abstractmethod
    def parameters(self, temperature: float, seed: int | None) -> Any:  # noqa: ANN401 - vLLM's
        """How one answer is sampled.

        Args:
            temperature: 0 takes the most probable token, else at least 0.01.
            seed: makes the sampling repeatable; none: the engine's own stream.
        """

    @abstractmethod
    def sampled(self, output: Any) -> SampledAction:  # noqa: ANN401 - vLLM's
        """The answer in a finished request's output."""


class PolicyFamily(ABC):
    """One checkpoint's."""

    engine_models: ClassVar[dict[str, str]]
    """vLLM's name of the architecture to our module and class."""
    new_prefixes: ClassVar[tuple[str, ...]] = ()
    """How the keys of weights begin that may be new where a policy is fine-tuned by LoRA: they are
    trained as they are."""
    reads_action_tokens: ClassVar[bool]
    """Whether each action token is predicted after those before it, which the network reads. False:
    all come from one pass that reads none."""

    def __init__(self, checkpoint: Path) -> None:
        """Children read the settings, no weights.

        Raises:
            ConfigError: a file is missing or can't be used; the message names it.
        """
        self.checkpoint = checkpoint

    @property
    @abstractmethod
    def spec(self) -> PolicySpec:
        """Its observations and actions."""

    @property
    @abstractmethod
    def sizes(self) -> OpenVLAConfig:
        """Of towers, projector and language model, which all families so far share."""

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """Between actions and tokens, without the prompt's tokenizer."""
        return self.sizes.action_tokenizer

    @abstractmethod
    def check(self) -> None:
        """Makes sure that the folder holds all of the checkpoint, and nothing else.

        Raises:
            ConfigError: its tokenizer can't be used, or it is a model of another kind.
            CheckpointError: its weights aren't whole, or don't fit its configuration.
        """

    @abstractmethod
    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """The layers that LoRA may change, by their keys without ``.weight``, to (out, in)."""

    @abstractmethod
    def processor(self, center_crop: bool) -> Processor:
        """The way from observations to inputs, and between actions and tokens.

        Raises:
            ConfigError: the tokenizer is missing, broken or not Llama-like.
        """

    @abstractmethod
    def network(self, dtype: torch.dtype, device: torch.device) -> PolicyNetwork:
        """The network in torch, in evaluation mode.

        Raises:
            CheckpointError: tensors are missing, unexpected or of another shape.
        """

    @abstractmethod
    def tower_pixels(self) -> nn.Module:
        """From frames' levels [B, S, S, 3] to one image's part of `pixel_values`, in torch.

        Raises:
            ConfigError: the numbers are missing or can't be used.
        """

    @abstractmethod
    def imitation_losses(
        self, logits: Tensor, bins: Tensor, counted: Tensor, targets: Tensor
    ) -> Tensor:
        """What supervised fine-tuning lowers: the loss of each sample, in nats: [B].

        Args:
            logits: of a family that reads action tokens, [B, K, bins] over the action ids, each
                after the expert's tokens before it; of any other, its network's
                `supervised_logits`.
            bins: int64 [B, K], the expert's tokens, counted from the first action id.
            counted: bool [B, K], whether a token's action is one of the episode's.
            targets: [K, bins, bins]: for each token, by the expert's bin, how it is spread.
        """

    @abstractmethod
    def serving(self) -> Serving:
        """How vLLM runs it."""

    def verdict_ids(self) -> tuple[int, int]:
        """The ids by which a reward model says that an action leads nowhere, or somewhere.

        Raises:
            ConfigError: it can't be a reward model.
        """
        raise ConfigError(
            f"{self.checkpoint} is of the family {self.spec.family}, which reads no actions, so it "
            "can't be a reward model"
        )
