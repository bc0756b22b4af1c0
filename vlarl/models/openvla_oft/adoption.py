"""Other people's OpenVLA-OFT as checkpoints: ``family.json`` is written, and parts that lie beside
the weights join them.

    weights, or an adapter onto a base              -+
    proprio_projector--STEP_checkpoint.pt           -+-> model*.safetensors
    what the command says, and what the folder tells  -> family.json

Names, values and data types stay. A critic's weights (``value_head.*``, RLinf's) are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vlarl.errors import ConfigError
from vlarl.models.openvla.adoption import (
    Adoption,
    is_adapter,
    is_whole,
    of_adapter,
    of_weights,
    refuse_base,
    unpickled,
)
from vlarl.models.openvla.oft import OPENVLA_OFT, oft_heads, stated_chunk
from vlarl.models.openvla_oft.config import MAIN_CAMERA, OFTConfig
from vlarl.models.openvla_oft.wholeness import check_settings
from vlarl.models.registry import check_any
from vlarl.models.statistics import STATISTICS
from vlarl.weights.checkpoint import CheckpointReader
from vlarl.weights.folder import FAMILY_FILE, CheckpointError, read_json, weight_files
from vlarl.weights.whereabouts import (
    EACH_CAMERA,
    PROPRIO_PROJECTOR,
    is_oft,
    pickled_weights,
    useless_head,
)
from vlarl.weights.wholeness import some_of

_PROJECTOR = "proprio_projector."
"""How its keys begin among the weights."""
_ADAPTER = "lora_adapter"
"""Folder in which fine-tuning leaves its adapter."""
_STEP = re.compile(r"--(\d+)_chkpt$")
"""How the name of a checkpoint's folder ends, by which fine-tuning tells its steps apart."""
_LAYERS = ("fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight")


@dataclass(frozen=True)
class AskedFamily:
    """What the command says of ``family.json``; None or empty where it says nothing."""

    chunk: int | None = None
    convention: str | None = None
    cameras: tuple[str, ...] = ()
    proprio: int | None = None

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return self != AskedFamily()


def find_chunked_adoption(source: Path, base: Path | None, asked: AskedFamily) -> Adoption:
    """What can be made of a folder as OpenVLA-OFT.

    Args:
        source: folder of weights of any form, of an adapter, or of a fine-tuning run that left
            one in ``lora_adapter``.
        base: folder of the model that the adapter belongs to.
        asked: what ``family.json`` shall say.

    Raises:
        ConfigError, CheckpointError: nothing, or nothing needs to be done; the message says why.
    """
    parts, weights = _places(source)
    if useless_head(head := oft_heads(parts)):
        raise ConfigError(is_oft(source, head))
    found = _found(parts, weights, base)
    inside, beside = _inside(weights, found), _beside(parts)
    stated = found.files / FAMILY_FILE
    family = None
    if os.path.lexists(stated):
        _refuse_stated(stated, asked)
        if is_whole(source) and (inside or not beside):
            check_any(source)
            raise ConfigError(f"{source} can be loaded as it is")
    if inside and beside and not is_adapter(weights):
        raise CheckpointError(
            f"{source}: its weights have {min(inside)}, and {head} has another: keep the one that "
            "they were trained with, and move the other away"
        )
    projector = beside or inside
    if not os.path.lexists(stated):
        family = _family(source, parts, found, asked)
        family |= {"proprio": _width(source, projector, asked)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in found.tensors():
            if not key.startswith((_PROJECTOR, "value_head.")):
                yield key, tensor
        yield from sorted(projector.items())

    return replace(found, tensors=tensors, family=family, look=_look)


def _look(folder: Path) -> None:
    check_settings(folder, OFTConfig.from_directory(folder))


def _places(source: Path) -> tuple[Path, Path]:
    """The folder in which parts lie beside the weights, and that of the weights or the adapter."""
    below, above = source / _ADAPTER, source.resolve().parent
    if is_adapter(source):
        ran = oft_heads(above) or source.resolve().name == _ADAPTER
        return (above if ran and not oft_heads(source) else source), source
    shards = any(source.glob("model-*-of-*.safetensors"))
    has_weights = is_whole(source) or shards or bool(pickled_weights(source))
    return source, below if is_adapter(below) and not has_weights else source


def _found(parts: Path, weights: Path, base: Path | None) -> Adoption:
    if is_adapter(weights):
        found, statistics = of_adapter(weights, base), parts / STATISTICS
        own = found.statistics or (statistics if statistics.exists() else None)
        return replace(found, statistics=own)
    refuse_base(weights, base)
    if not is_whole(weights):
        return of_weights(weights)
    reader = CheckpointReader(weights)
    size = sum(path.stat().st_size for path in weight_files(weights))
    return Adoption(weights, None, size, lambda: ((key, reader.tensor(key)) for key in reader))


def _inside(weights: Path, found: Adoption) -> dict[str, Tensor]:
    """The projector that lies among the weights; an adapter's, among its base's."""
    if is_adapter(weights):
        reader = CheckpointReader(found.files)
        return {key: reader.tensor(key) for key in reader if key.startswith(_PROJECTOR)}
    projector = {}
    for key, tensor in found.tensors():
        if key.startswith("action_head."):
            raise ConfigError(f"{weights}: it has {key}, and {useless_head('action_head--')}")
        if key.startswith(_PROJECTOR):
            projector[key] = tensor
    return projector


def _beside(parts: Path) -> dict[str, Tensor]:
    """The projector that lies beside the weights, by its names among them; empty: there is none.

    Raises:
        ConfigError: there are several, and the folder's name doesn't say which.
        CheckpointError: it is cut short, or something else.
    """
    paths = sorted(parts.glob(PROPRIO_PROJECTOR))
    if len(paths) > 1:
        step = _STEP.search(parts.resolve().name)
        own = [path for path in paths if step and f"--{step[1]}_" in path.name]
        if len(own) != 1:
            raise ConfigError(
                f"{parts} has {', '.join(path.name for path in paths)}: keep the one of the step "
                "that the weights are of, and move the others away"
            )
        paths = own
    if not paths:
        return {}
    stored = {key.removeprefix("module."): one for key, one in unpickled(paths[0]).items()}
    if tuple(sorted(stored)) != _LAYERS or stored["fc1.weight"].ndim != 2:
        raise CheckpointError(
            f"{paths[0]} is no projector of proprioception, whose weights are "
            f"{', '.join(_LAYERS)}: it holds {some_of(sorted(stored))}"
        )
    return {f"{_PROJECTOR}{key}": tensor for key, tensor in stored.items()}


def _width(source: Path, projector: dict[str, Tensor], asked: AskedFamily) -> int:
    """How many numbers of proprioception the policy reads."""
    key = f"{_PROJECTOR}fc1.weight"
    width = projector[key].shape[-1] if key in projector else 0
    if asked.proprio not in (None, width):
        what = f"takes {width} numbers" if width else "is missing"
        raise ConfigError(
            f"{source}: its projector of proprioception ({_PROJECTOR}*, or {PROPRIO_PROJECTOR}) "
            f"{what}, and --proprio says {asked.proprio}: leave it out"
        )
    return width


def _family(source: Path, parts: Path, found: Adoption, asked: AskedFamily) -> dict[str, object]:
    """What ``family.json`` will say, proprioception apart.

    Raises:
        ConfigError: neither the command nor the folder says all of it.
    """
    own = parts / "config.json"  # an adapter's is often its base's
    raw = read_json(own if own.exists() else found.files / "config.json")
    chunk = asked.chunk or stated_chunk(parts, raw)
    missing = []
    if chunk is None:
        missing.append("--chunk, the control steps that a pass answers (LIBERO: 8, Bridge: 5)")
    if asked.convention is None:
        missing.append(
            "--convention, stop for what openvla-oft or SimpleVLA-RL trained, no_stop for RLinf's"
        )
    if missing:
        if not asked.cameras:
            missing.append(EACH_CAMERA)
        raise ConfigError(
            f"{source}: it doesn't say how it was trained, so give {', and '.join(missing)}"
        )
    cameras = list(asked.cameras or MAIN_CAMERA)
    return {
        "family": OPENVLA_OFT,
        "chunk": chunk,
        "convention": asked.convention,
        "cameras": cameras,
    }


def _refuse_stated(stated: Path, asked: AskedFamily) -> None:
    if asked:
        raise ConfigError(
            f"{stated} says already how the policy is used: leave --chunk, --convention, --camera "
            "and --proprio out, or change it there"
        )
