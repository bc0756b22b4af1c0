"""A tiny checkpoint in the original format: the whole loop on a laptop, without a download.

Random weights, so its actions mean nothing until it is trained; its own Llama-style tokenizer,
trained on LIBERO's instructions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers.pre_tokenizers import Metaspace
from torch import Tensor

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.network import OpenVLA
from vlarl.models.openvla.tokens import ACTION_BINS
from vlarl.models.statistics import ActionStats
from vlarl.weights.checkpoint import save_tensors

_TEXT_TOKENS = 512
_VOCAB_SIZE = _TEXT_TOKENS + ACTION_BINS
_PADDING = 64
_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ALPHABET = list("▁abcdefghijklmnopqrstuvwxyz0123456789IWO:?.,'-")
_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
_HEAD_DIM = 32
"""vLLM on a CPU takes no narrower head."""


def make_tiny_checkpoint(directory: str | Path, seed: int = 0, **sizes: int) -> OpenVLAConfig:
    """Write a checkpoint of about a million parameters; the same arguments give the same bytes.

    Args:
        directory: folder to write.
        seed: of the weights.
        sizes: ``image_size``, a multiple of the patch size, 14; ``tower_dim``; ``tower_depth``, of
            whose blocks the last is never computed, as in the original; ``text_dim``, a multiple of
            32; ``text_layers``. Those left out are `_sized`'s.

    Raises:
        ConfigError: the sizes don't fit together.
    """
    directory = Path(directory)
    config = write_tiny_settings(directory, **sizes)
    save_tensors(directory, initial_tensors(config, seed))
    return config


def write_tiny_settings(directory: Path, **sizes: int) -> OpenVLAConfig:
    """`make_tiny_checkpoint` without the weights.

    Raises:
        ConfigError: the sizes don't fit together; nothing is written.
    """
    raw = _sized(**sizes)
    _resolved(raw)
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", raw)
    _write_json(directory / "preprocessor_config.json", _preprocessor(raw["image_sizes"][0]))
    _write_tokenizer(directory)
    return OpenVLAConfig.from_directory(directory)


def tiny_config(**sizes: int) -> OpenVLAConfig:
    """What `make_tiny_checkpoint` would make.

    Raises:
        ConfigError: the sizes don't fit together.
    """
    return _resolved(_sized(**sizes))


def libero_instructions() -> list[str]:
    """The instructions of LIBERO's 130 tasks, each once, sorted."""
    listing = files("vlarl.models.openvla").joinpath("libero_instructions.txt")
    return listing.read_text(encoding="utf-8").splitlines()


def train_tokenizer() -> Tokenizer:
    """A Llama-style tokenizer: BPE with byte fallback, BOS first, the action ids last."""
    vocab, merges = _learned_merges()
    text_tokens = [*_SPECIAL, *_BYTES, *sorted(vocab, key=vocab.__getitem__)]
    unused = [f"<unused_{index}>" for index in range(_TEXT_TOKENS - len(text_tokens))]
    actions = [f"<action_{index}>" for index in range(ACTION_BINS)]
    ids = {token: index for index, token in enumerate([*text_tokens, *unused, *actions])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=_SPECIAL[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = [AddedToken(token, normalized=False, special=True) for token in [*_SPECIAL, "<PAD>"]]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _learned_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces of words with their ids, and the merges that make them; none spans a space."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=_TEXT_TOKENS - len(_SPECIAL) - len(_BYTES),
        initial_alphabet=_ALPHABET,
        show_progress=False,
    )
    # Every prompt holds the question, so its words count as often as the instructions.
    question = ["In: What action should the robot take to", "Out:"]
    instructions = libero_instructions()
    learner.train_from_iterator([*instructions, *question * len(instructions)], trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def _write_tokenizer(directory: Path) -> None:
    train_tokenizer().save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<PAD>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _text_config(dim: int, layers: int) -> dict[str, Any]:
    heads = dim // _HEAD_DIM
    return {
        "model_type": "llama",
        "vocab_size": _VOCAB_SIZE + _PADDING,
        "hidden_size": dim,
        "intermediate_size": 11 * dim // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": _VOCAB_SIZE,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _sized(
    *,
    image_size: int = 84,
    tower_dim: int = 64,
    tower_depth: int = 3,
    text_dim: int = 128,
    text_layers: int = 2,
) -> dict[str, Any]:
    """``config.json``."""
    if text_dim % _HEAD_DIM:
        raise ConfigError(f"text_dim must be a multiple of {_HEAD_DIM}, not {text_dim}")
    tower = {"embed_dim": tower_dim, "depth": tower_depth, "num_heads": max(1, tower_dim // 32)}
    return _config(image_size, tower, _text_config(text_dim, text_layers))


def _resolved(raw: dict[str, Any]) -> OpenVLAConfig:
    stats = {
        suite: ActionStats.from_json(one["action"]) for suite, one in raw["norm_stats"].items()
    }
    return OpenVLAConfig.from_json(raw, stats, "config.json", "tiny")


def _config(image_size: int, tower: dict[str, int], text: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "use_fused_vision_backbone": True,
        "timm_model_ids": [
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_224",
        ],
        "timm_override_act_layers": [None, None],
        "timm_model_kwargs": [tower, tower],
        "image_sizes": [image_size, image_size],
        "image_resize_strategy": "resize-naive",
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "n_action_bins": ACTION_BINS,
        "pad_token_id": _VOCAB_SIZE,
        "pad_to_multiple_of": _PADDING,
        "center_crop": False,
        "norm_stats": {suite: {"action": _libero_statistics()} for suite in _SUITES},
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _libero_statistics() -> dict[str, Any]:
    """Bounds like those of LIBERO's demonstrations: full speed along x, y, z, gentle turns."""
    bounds = [0.9375, 0.9375, 0.9375, 0.15, 0.3, 0.3]
    return {
        "mean": [0.0] * 6 + [0.5],
        "std": [bound / 3 for bound in bounds] + [0.5],
        "min": [-bound for bound in bounds] + [0.0],
        "max": [*bounds, 1.0],
        "q01": [-bound for bound in bounds] + [0.0],
        "q99": [*bounds, 1.0],
        "mask": [True] * 6 + [False],
    }


def _preprocessor(image_size: int) -> dict[str, Any]:
    """The original's numbers, rounded to bfloat16 as they are there."""
    means = [[0.484375, 0.455078125, 0.40625], [0.5] * 3]
    stds = [[0.228515625, 0.2236328125, 0.224609375], [0.5] * 3]
    size = [image_size, image_size]
    resize = {"antialias": True, "interpolation": 3, "max_size": None, "size": size}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, *size]] * 2,
        "interpolations": ["bicubic"] * 2,
        "means": means,
        "stds": stds,
        "tvf_crop_params": [{"output_size": size}] * 2,
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": mean, "std": std}
            for mean, std in zip(means, stds, strict=True)
        ],
        "tvf_resize_params": [resize] * 2,
        "use_fused_vision_backbone": True,
    }


def initial_tensors(config: OpenVLAConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Random weights, by their keys."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in OpenVLA(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for key in sorted(shapes):
        yield key, _initial_tensor(key, shapes[key], generator)


def _initial_tensor(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Linear layers keep variance; the head is small, so that first actions are near uniform.

    Embeddings are drawn large enough to be heard beside image patches of unit variance.
    """
    if key.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    drawn = torch.randn(shape, generator=generator)
    if "lm_head" in key:
        return 0.02 * drawn
    if not key.endswith("weight") or "embed_tokens" in key:
        return 0.5 * drawn
    return drawn / math.sqrt(math.prod(shape[1:]))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
