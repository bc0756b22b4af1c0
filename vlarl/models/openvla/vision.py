"""The vision towers and their input: a vision transformer with timm 0.9's parameter names.

timm itself is left out because it imports torchvision, which the serving environment lacks.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vlarl.models.openvla.config import TowerConfig
from vlarl.models.openvla.pixels import PixelNormalizer

_NORM_EPS = 1e-6
_FEW = 4
"""Frames that a CPU normalises at once."""


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each: [B, 3, S, S] -> [B, patches, dim]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        projected: Tensor = self.proj(pixels)
        return projected.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over [B, tokens, dim]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, tokens, dim = hidden.shape
        qkv: Tensor = self.qkv(hidden).view(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return projected


class Mlp(nn.Module):
    """Two layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return projected


class LayerScale(nn.Module):
    """Scales each channel. OpenVLA's checkpoints say ``scale_factor`` for timm's ``gamma``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale_factor


class Block(nn.Module):
    """A pre-norm transformer block over [B, tokens, dim]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_hidden)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.ls1(self.attn(self.norm1(hidden)))
        return hidden + torch.as_tensor(self.ls2(self.mlp(self.norm2(hidden))))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: stored in the checkpoints, never computed."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = Mlp(dim, config.mlp_hidden)


class VisionTransformer(nn.Module):
    """One tower, up to the features that OpenVLA reads.

    Those are the output of the second-to-last block, without the final norm and without the
    class and register tokens. The last block, the final norm and the attention pool only hold
    the checkpoint's tensors.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, dim))
        prefix = []
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            prefix.append("cls_token")
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, dim))
            prefix.append("reg_token")
        self._prefix_names = prefix
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        if config.attention_pool:
            self.attn_pool = AttentionPool(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> patch features [B, patches, dim]."""
        patches = self.patch_embed(pixels) + self.pos_embed
        prefix = [getattr(self, name).expand(len(patches), -1, -1) for name in self._prefix_names]
        hidden = torch.cat([*prefix, patches], dim=1)
        for block in self.blocks[:-1]:
            hidden = block(hidden)
        return hidden[:, -patches.shape[1] :]


class TowerPixels(nn.Module):
    """What `PixelNormalizer` computes, to the bit, for a batch in torch, on the device that the
    towers are on: a frame's bytes are an eighth of its two towers' inputs.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        """Reads the numbers of ``preprocessor_config.json``.

        Raises:
            ConfigError: the file is missing or can't be used.
        """
        super().__init__()
        numbers = PixelNormalizer.from_directory(checkpoint)
        self._mean: Tensor
        self._deviation: Tensor
        self._white: Tensor
        # CUDA multiplies by a rounded reciprocal where it is to divide by a plain number, so white
        # is a tensor. All stay float32 whatever the model's type is.
        self.register_buffer("_mean", torch.tensor(numbers.mean), persistent=False)
        self.register_buffer("_deviation", torch.tensor(numbers.std), persistent=False)
        white = torch.tensor(255, dtype=torch.float32)
        self.register_buffer("_white", white, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Whole levels, uint8 or float32 [B, S, S, 3] -> float32 [B, 3 * towers, S, S]."""
        planes = frames.permute(0, 3, 1, 2)
        towers = self._mean.new_empty(len(planes), *self._mean.shape[:2], *planes.shape[2:])
        # A core is twice as fast on what its cache holds; a GPU has no use for small parts.
        few = _FEW if planes.device.type == "cpu" else max(1, len(planes))
        for levels, part in zip(torch.split(planes, few), torch.split(towers, few), strict=True):
            unit = levels.float() / self._white
            torch.sub(unit[:, None], self._mean, out=part).div_(self._deviation)
        return towers.flatten(1, 2)
