"""LoRA: which layers it may change."""

from __future__ import annotations

from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.tensors import stored_tensors, unused_prefixes

_EMBEDDINGS = ("language_model.model.embed_tokens.", "language_model.lm_head.")


def lora_layers(config: OpenVLAConfig) -> dict[str, tuple[int, int]]:
    """Every linear layer that the forward pass uses, by its checkpoint key without ``.weight``.

    The values are (out, in). Left out are the towers' last blocks and attention pool, which are
    stored but never computed, and the language model's head.
    """
    unused = unused_prefixes(config)
    layers: dict[str, tuple[int, int]] = {}
    for key, shape in stored_tensors(config).items():
        layer, _, kind = key.rpartition(".")
        if kind == "weight" and len(shape) == 2 and not key.startswith((*unused, *_EMBEDDINGS)):
            layers[layer] = (shape[0], shape[1])
    return layers
