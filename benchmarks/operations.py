"""How many floating-point operations a policy's passes need at least, by arithmetic, and how many
they take, by torch's counter. A multiplication and an addition are two.

The least: every layer that the passes use, on a sample's own tokens, without padding; backward only
what LoRA needs, the gradients of activations and factors; logits of the 256 action ids where an
action token is predicted. Attention counts whole, as torch's counter has it, though half of it is
masked in the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.tokens import ACTION_BINS

_PIXEL_CHANNELS = 3


@dataclass(frozen=True)
class Least:
    """Operations of one sample's pass."""

    forward: int
    """Forward; merged weights have the factors in them."""
    backward: int
    """Backward, what a forward pass has computed kept."""

    @property
    def update(self) -> int:
        """A pass with gradient."""
        return self.forward + self.backward


def least(config: OpenVLAConfig, rank: int, prompt_tokens: int, action_tokens: int) -> Least:
    """The least that a sample takes.

    Args:
        config: the checkpoint's sizes.
        rank: of the factors.
        prompt_tokens: of its prompt, BOS and "▁" included.
        action_tokens: of its action.
    """
    # The last action token is predicted, never read.
    text_tokens = config.num_patches + prompt_tokens + action_tokens - 1
    towers = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    tokens = {"projector.": config.num_patches, "language_model.": text_tokens}
    forward = 0
    attention = 4 * text_tokens**2 * config.text.hidden_size * config.text.num_hidden_layers
    for prefix, tower in zip(towers, config.towers, strict=False):
        tokens[prefix] = tower.num_patches + int(tower.class_token) + tower.reg_tokens
        pixels = _PIXEL_CHANNELS * tower.patch_size**2
        forward += 2 * tower.num_patches * pixels * tower.embed_dim
        attention += 4 * tokens[prefix] ** 2 * tower.embed_dim * (tower.depth - 1)
    backward = 0
    for name, (out, into) in lora_layers(config).items():
        (seen,) = (count for prefix, count in tokens.items() if name.startswith(prefix))
        forward += 2 * seen * out * into
        # G B and (G B)^T x for A; x A^T and G^T (x A^T) for B.
        backward += 4 * seen * rank * (out + into)
        if not name.endswith("blocks.0.attn.qkv"):
            # Before that one nothing learns: the gradient of its input isn't needed.
            backward += 2 * seen * out * into
    head = 2 * action_tokens * config.text.hidden_size * ACTION_BINS
    forward += attention + head
    return Least(forward, backward + 2 * attention + head)


def _attention(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    _: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *__: object, **___: object
) -> int:
    """Two products for each of the forward pass's; scores computed again aren't counted."""
    return 2 * int(sdpa_flop_count(query, key, value))


class Operations(FlopCounterMode):
    """Counts what is computed while it is entered, attention on a CPU too."""

    def __init__(self) -> None:
        """Counts nothing yet."""
        aten = torch.ops.aten
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            },
        )

    @property
    def of_the_policy(self) -> int:
        """What was computed in OpenVLA's passes."""
        counts = self.get_flop_counts()
        (name,) = (name for name in counts if name.endswith("OpenVLA"))
        return int(sum(counts[name].values()))
