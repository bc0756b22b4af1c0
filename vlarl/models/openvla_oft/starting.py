"""Begins an OpenVLA-OFT with an OpenVLA's weights, be they trained or new.

All of OpenVLA's tensors stay as they are. What is new is a projector of proprioception, random,
and statistics that stand for it until training knows better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.oft import FAMILY_FILE, OPENVLA_OFT
from vlarl.models.openvla.tiny import initial_tensors as initial_openvla_tensors
from vlarl.models.openvla.tiny import tiny_config, write_tiny_settings
from vlarl.models.openvla_oft.config import Convention, FamilyError, OFTConfig
from vlarl.models.openvla_oft.tensors import projector_tensors
from vlarl.models.statistics import STATISTICS, ActionStats
from vlarl.weights.checkpoint import save_tensors

_LIBERO_LOW = (-0.6, -0.5, 0.0, 2.0, -1.6, -1.6, 0.0, -0.04)
_LIBERO_HIGH = (0.4, 0.5, 1.5, 4.3, 1.6, 1.6, 0.04, 0.0)
"""Where LIBERO's hands are: metres, an axis times an angle, and two finger joints."""


def make_tiny_oft_checkpoint(
    directory: str | Path,
    seed: int = 0,
    *,
    chunk: int = 8,
    convention: Convention = "stop",
    cameras: Sequence[str] = ("agentview",),
    proprio: int = 0,
    **sizes: int,
) -> OFTConfig:
    """Writes a tiny checkpoint; the same arguments give the same bytes.

    Args:
        directory: folder to write.
        seed: of the weights; those of an OpenVLA are the same as `make_tiny_checkpoint`'s.
        chunk: as `begin_oft` takes it, like the next three.
        convention: what follows the placeholders.
        cameras: the main one first.
        proprio: numbers that it reads.
        sizes: as `make_tiny_checkpoint` takes them.

    Raises:
        ConfigError: the sizes don't fit together.
    """
    folder = Path(directory)
    begin = partial(begin_oft, chunk=chunk, convention=convention, cameras=cameras, proprio=proprio)
    check_beginning(tiny_config(**sizes), **begin.keywords)
    base = write_tiny_settings(folder, **sizes)
    return begin(folder, initial_openvla_tensors(base, seed), seed)


def check_beginning(
    base: OpenVLAConfig,
    *,
    chunk: int,
    convention: Convention,
    cameras: Sequence[str],
    proprio: int,
) -> None:
    """Makes sure that `begin_oft` can make an OpenVLA of these sizes one. Nothing is written.

    Args:
        base: the OpenVLA.
        chunk: as `begin_oft` takes it, like the next three.
        convention: what follows the placeholders.
        cameras: the main one first.
        proprio: numbers that it reads.

    Raises:
        ConfigError: they don't fit the model.
    """
    stats = ActionStats.from_json(_bounds(proprio)) if proprio else None
    try:
        config = OFTConfig.of_openvla(
            base,
            _table(chunk, convention, cameras, proprio),
            dict.fromkeys(base.spec.norm_stats, stats) if stats else {},
        )
    except FamilyError as error:
        raise ConfigError(str(error)) from error
    if too_long := config.too_long():
        raise ConfigError(f"{too_long}: take a smaller chunk or fewer cameras")
    if no_room := config.no_room():
        raise ConfigError(f"{base.spec.name}: {no_room}")


def begin_oft(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    seed: int,
    *,
    chunk: int,
    convention: Convention,
    cameras: Sequence[str],
    proprio: int,
) -> OFTConfig:
    """Makes a folder with an OpenVLA's files, weights apart, an OpenVLA-OFT.

    Args:
        folder: it.
        tensors: OpenVLA's weights.
        seed: of the projector of proprioception.
        chunk: actions of an answer.
        convention: see `OFTConfig`.
        cameras: the main one first.
        proprio: numbers that it reads; 0: none.

    Raises:
        ConfigError: they don't fit the model, which `check_beginning` says before.
    """
    _write(folder / FAMILY_FILE, _table(chunk, convention, cameras, proprio))
    if proprio:
        _add_statistics(folder, proprio)
    config = OFTConfig.from_directory(folder)
    save_tensors(folder, chain(tensors, _fresh_projector(config, seed)))
    return config


def _table(
    chunk: int, convention: Convention, cameras: Sequence[str], proprio: int
) -> dict[str, Any]:
    """What ``family.json`` says."""
    return {
        "family": OPENVLA_OFT,
        "chunk": chunk,
        "convention": convention,
        "cameras": list(cameras),
        "proprio": proprio,
    }


def _fresh_projector(config: OFTConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Layers that keep variance, in float32."""
    generator = torch.Generator().manual_seed(seed)
    for key, shape in sorted(projector_tensors(config).items()):
        drawn = torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        yield key, drawn if key.endswith("weight") else torch.zeros(shape)


def _add_statistics(folder: Path, width: int) -> None:
    """Gives datasets that have no statistics of so many numbers LIBERO's bounds, or -1 to 1."""
    beside = folder / STATISTICS
    path = beside if beside.exists() else folder / "config.json"
    content = json.loads(path.read_bytes())
    datasets = content if path == beside else content["norm_stats"]
    for dataset in datasets.values():
        known = dataset.get("proprio") or {}
        if len(known.get("q01") or ()) != width:
            dataset["proprio"] = _bounds(width)
    _write(path, content)


def _bounds(width: int) -> dict[str, Any]:
    """LIBERO's for its own number of numbers, or -1 to 1."""
    libero = width == len(_LIBERO_LOW)
    low, high = (_LIBERO_LOW, _LIBERO_HIGH) if libero else ([-1.0] * width, [1.0] * width)
    return {"min": list(low), "max": list(high), "q01": list(low), "q99": list(high)}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
