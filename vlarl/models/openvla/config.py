"""What a checkpoint's ``config.json`` says, resolved: sizes of every part, statistics, defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlarl.errors import ConfigError
from vlarl.models.openvla.tokens import ACTION_BINS, ActionTokenizer
from vlarl.models.spec import PolicySpec
from vlarl.models.statistics import STATISTICS, ActionStats
from vlarl.weights.folder import configuration_of, read_json


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer. Defaults follow timm's VisionTransformer."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 14
    mlp_ratio: float = 4.0
    image_size: int = 224
    class_token: bool = False
    reg_tokens: int = 0
    layer_scale: bool = False
    attention_pool: bool = False

    @property
    def mlp_hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def num_patches(self) -> int:
        """Number of image tokens."""
        return (self.image_size // self.patch_size) ** 2


_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(
        embed_dim=1024, depth=24, num_heads=16, class_token=True, reg_tokens=4, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": TowerConfig(
        embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.7362, attention_pool=True
    ),
}
_TOWER_KEYS = {"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "reg_tokens"}


@dataclass(frozen=True)
class TextConfig:
    """The Llama's sizes. Defaults are transformers' own LlamaConfig's, which original checkpoints
    rely on: their ``text_config`` names little beyond the vocabulary.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> TextConfig:
        """From ``text_config``; keys that don't change the architecture are ignored.

        Raises:
            ConfigError: it isn't a plain Llama.
        """
        if text.get("model_type", "llama") != "llama":
            raise ConfigError(f"text_config.model_type {text['model_type']!r} is not a Llama")
        rope = text.get("rope_parameters") or {}
        scaled = text.get("rope_scaling") or rope.get("rope_type", "default") != "default"
        if scaled or text.get("attention_bias") or text.get("mlp_bias"):
            raise ConfigError("rope_scaling and biases in the language model are not supported")
        sizes = {name: text[name] for name in cls.__dataclass_fields__ if text.get(name)}
        sizes.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        sizes.setdefault("num_key_value_heads", sizes.get("num_attention_heads", 32))
        config = cls(**sizes)
        heads, head_dim = config.num_attention_heads, text.get("head_dim")
        if config.hidden_size % heads or head_dim not in (None, config.hidden_size // heads):
            raise ConfigError("hidden_size must be num_attention_heads times head_dim")
        return config


@dataclass(frozen=True, eq=False)
class OpenVLAConfig:
    """A checkpoint's resolved configuration: what any policy has, and the network's sizes.

    ``towers`` come in the order in which their features are concatenated, ``vicuna_prompt`` tells
    an OpenVLA v0.1 checkpoint. The action ids are the last 256 of the text vocabulary without its
    padding.
    """

    spec: PolicySpec
    towers: tuple[TowerConfig, ...]
    text: TextConfig
    pad_token_id: int
    vicuna_prompt: bool

    @classmethod
    def from_directory(cls, directory: str | Path) -> OpenVLAConfig:
        """Read a checkpoint's ``config.json`` and, if there, ``dataset_statistics.json``.

        Where ``config.json`` has no ``center_crop`` of its own, the centre crop is on if every
        statistic is of a LIBERO dataset: that is how the checkpoints fine-tuned on LIBERO, with
        random crops, differ from the base model and its mixture of datasets.

        Raises:
            ConfigError: a file is missing or can't be used; the message names it.
        """
        directory = Path(directory)
        raw = read_json(configuration_of(directory))
        norm_stats, path = stored_statistics(directory, raw, "action")
        try:
            return cls.from_json(raw, norm_stats, path.name, model_name(directory))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            cause = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{directory / 'config.json'}: {cause}") from error

    @classmethod
    def from_json(
        cls,
        raw: Mapping[str, Any],
        norm_stats: dict[str, ActionStats],
        statistics_file: str,
        name: str,
    ) -> OpenVLAConfig:
        """`from_directory` of what the files say.

        Args:
            raw: ``config.json``.
            norm_stats: a dataset's name to its statistics.
            statistics_file: name of the file that holds them.
            name: the model's, for people.

        Raises:
            ConfigError: a value can't be used.
            KeyError, TypeError, ValueError, AttributeError, ArithmeticError: the same, of another
                kind than is expected.
        """
        if raw.get("model_type") != "openvla":
            raise ConfigError(f"model_type is {raw.get('model_type')!r}, not 'openvla'")
        if raw.get("n_action_bins", ACTION_BINS) != ACTION_BINS:
            raise ConfigError(f"n_action_bins must be {ACTION_BINS}")
        text = TextConfig.from_json(raw["text_config"])
        towers = _towers(raw)
        on_libero = all(key.startswith("libero") for key in norm_stats)
        if not 0 <= raw["pad_token_id"] < text.vocab_size:
            raise ConfigError(f"pad_token_id {raw['pad_token_id']} is beyond the vocabulary")
        center_crop = raw.get("center_crop", on_libero)
        if not isinstance(center_crop, bool):
            raise ConfigError(f"center_crop is {center_crop!r}; write true or false")
        is_v01 = "openvla-v01" in f"{raw.get('_name_or_path', '')} {name}"
        vocabulary = text.vocab_size - raw.get("pad_to_multiple_of", 64)
        spec = PolicySpec(
            name=name,
            image_size=towers[0].image_size,
            center_crop=center_crop,
            center_crop_is_set="center_crop" in raw,
            action_ids=ActionTokenizer(vocabulary).action_ids,
            norm_stats=norm_stats,
            statistics_file=statistics_file,
        )
        return cls(
            spec=spec,
            towers=towers,
            text=text,
            pad_token_id=raw["pad_token_id"],
            vicuna_prompt=is_v01 or str(raw.get("llm_backbone_id", "")).startswith("vicuna"),
        )

    @property
    def num_patches(self) -> int:
        """Number of image tokens in the language model's sequence."""
        return self.towers[0].num_patches

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """From normalised values to action ids, and back."""
        return ActionTokenizer(self.spec.action_ids.stop)


def _towers(raw: Mapping[str, Any]) -> tuple[TowerConfig, ...]:
    names = raw["timm_model_ids"]
    overrides = raw.get("timm_model_kwargs") or [{}] * len(names)
    sizes = raw.get("image_sizes") or [224] * len(names)
    if len(names) not in (1, 2) or len(overrides) != len(names) or len(sizes) != len(names):
        raise ConfigError("one or two timm_model_ids, each with its image size and kwargs")
    if any(raw.get("timm_override_act_layers") or []):
        raise ConfigError("timm_override_act_layers is not supported")
    towers = []
    for name, override, size in zip(names, overrides, sizes, strict=True):
        if name not in _TOWERS:
            raise ConfigError(f"unknown tower {name!r}; known: {', '.join(_TOWERS)}")
        if unknown := set(override) - _TOWER_KEYS:
            raise ConfigError(f"unknown timm_model_kwargs: {', '.join(sorted(unknown))}")
        tower = replace(_TOWERS[name], **override, image_size=size)
        if size % tower.patch_size or tower.depth < 2 or tower.embed_dim % tower.num_heads:
            raise ConfigError(f"impossible size of tower {name}: {tower}")
        towers.append(tower)
    if len({(tower.image_size, tower.num_patches) for tower in towers}) != 1:
        raise ConfigError("the towers must see the same image size and number of patches")
    return tuple(towers)


def model_name(directory: Path) -> str:
    """The folder's name; in the hub's cache, where that is a commit's, the model's."""
    folder = directory.resolve()
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.rpartition("--")[2]
    return folder.name


def stored_statistics(
    directory: Path, raw: Mapping[str, Any], part: str
) -> tuple[dict[str, ActionStats], Path]:
    """Statistics of every dataset, and the file that holds them.

    Args:
        directory: the checkpoint.
        raw: its ``config.json``.
        part: "action" or "proprio".

    Raises:
        ConfigError: they are missing, broken, or of different dimensions.
    """
    beside = directory / STATISTICS
    # A link to nowhere is said: those of config.json may be the base model's.
    path = beside if os.path.lexists(beside) else directory / "config.json"
    datasets = read_json(beside) if path == beside else raw.get("norm_stats") or {}
    if not datasets or not isinstance(datasets, dict):
        raise ConfigError(
            f"{path}: there are no norm_stats, here or in {STATISTICS}, and without them action "
            "tokens have no units"
        )
    stats = {}
    for key, dataset in datasets.items():
        try:
            stats[key] = ActionStats.from_json(_table(_table(dataset)[part]))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            cause = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{path}: {part} statistics of {key!r}: {cause}") from error
    if len({one.action_dim for one in stats.values()}) != 1:
        raise ConfigError(f"{path}: norm_stats must hold datasets of one {part} dimension")
    return stats, path


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"there is {json.dumps(value)[:40]} instead of a table")
    return value
