"""Every tensor of an OpenVLA's state dict, and its shape, from the configuration alone.

The names are those of the original checkpoints; `backbone.py` has the modules behind them, and a
test compares the two. No torch is needed, so that a checkpoint can be looked at before one is
loaded.
"""

from __future__ import annotations

from itertools import pairwise

from vlarl.models.openvla.config import OpenVLAConfig, TextConfig, TowerConfig

Shapes = dict[str, tuple[int, ...]]
"""Of each tensor by its key."""

TOWERS = ("featurizer", "fused_featurizer")
"""The towers' names below ``vision_backbone``."""


def stored_tensors(config: OpenVLAConfig) -> Shapes:
    """Shapes of all tensors, as the model computes with them one after the other."""
    shapes: Shapes = {}
    for name, tower in zip(TOWERS, config.towers, strict=False):
        shapes |= _tower(f"vision_backbone.{name}", tower)
    vision, text = sum(tower.embed_dim for tower in config.towers), config.text.hidden_size
    widths = (vision, text, text) if len(config.towers) == 1 else (vision, 4 * vision, text, text)
    for number, (into, out) in enumerate(pairwise(widths), 1):
        shapes |= _linear(f"projector.fc{number}", out, into)
    return shapes | _language_model(config.text)


def unused_prefixes(config: OpenVLAConfig) -> tuple[str, ...]:
    """How the keys of tensors begin that are stored, but never computed with: each tower's last
    block, final norm and attention pool.
    """
    return tuple(
        f"vision_backbone.{name}.{part}."
        for name, tower in zip(TOWERS, config.towers, strict=False)
        for part in (f"blocks.{tower.depth - 1}", "norm", "attn_pool")
    )


def _tower(prefix: str, tower: TowerConfig) -> Shapes:
    dim, patch = tower.embed_dim, tower.patch_size
    shapes: Shapes = {
        f"{prefix}.patch_embed.proj.weight": (dim, 3, patch, patch),
        f"{prefix}.patch_embed.proj.bias": (dim,),
        f"{prefix}.pos_embed": (1, tower.num_patches, dim),
    }
    if tower.class_token:
        shapes[f"{prefix}.cls_token"] = (1, 1, dim)
    if tower.reg_tokens:
        shapes[f"{prefix}.reg_token"] = (1, tower.reg_tokens, dim)
    for index in range(tower.depth):
        block = f"{prefix}.blocks.{index}"
        shapes |= _norm(f"{block}.norm1", dim)
        shapes |= _linear(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= _linear(f"{block}.attn.proj", dim, dim)
        shapes |= _norm(f"{block}.norm2", dim)
        shapes |= _mlp(f"{block}.mlp", dim, tower.mlp_hidden)
        if tower.layer_scale:
            shapes |= {f"{block}.ls{number}.scale_factor": (dim,) for number in (1, 2)}
    shapes |= _norm(f"{prefix}.norm", dim)
    if tower.attention_pool:
        pool = f"{prefix}.attn_pool"
        shapes[f"{pool}.latent"] = (1, 1, dim)
        for name, out in (("q", dim), ("kv", 2 * dim), ("proj", dim)):
            shapes |= _linear(f"{pool}.{name}", out, dim)
        shapes |= _norm(f"{pool}.norm", dim) | _mlp(f"{pool}.mlp", dim, tower.mlp_hidden)
    return shapes


def _language_model(text: TextConfig) -> Shapes:
    dim, hidden = text.hidden_size, text.intermediate_size
    grouped = dim // text.num_attention_heads * text.num_key_value_heads
    shapes: Shapes = {"language_model.model.embed_tokens.weight": (text.vocab_size, dim)}
    for index in range(text.num_hidden_layers):
        block = f"language_model.model.layers.{index}"
        shapes[f"{block}.input_layernorm.weight"] = (dim,)
        shapes[f"{block}.self_attn.q_proj.weight"] = (dim, dim)
        shapes[f"{block}.self_attn.k_proj.weight"] = (grouped, dim)
        shapes[f"{block}.self_attn.v_proj.weight"] = (grouped, dim)
        shapes[f"{block}.self_attn.o_proj.weight"] = (dim, dim)
        shapes[f"{block}.post_attention_layernorm.weight"] = (dim,)
        shapes[f"{block}.mlp.gate_proj.weight"] = (hidden, dim)
        shapes[f"{block}.mlp.up_proj.weight"] = (hidden, dim)
        shapes[f"{block}.mlp.down_proj.weight"] = (dim, hidden)
    shapes["language_model.model.norm.weight"] = (dim,)
    shapes["language_model.lm_head.weight"] = (text.vocab_size, dim)
    return shapes


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _mlp(name: str, dim: int, hidden: int) -> Shapes:
    return _linear(f"{name}.fc1", hidden, dim) | _linear(f"{name}.fc2", dim, hidden)
