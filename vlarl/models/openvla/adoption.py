"""Other people's folders as checkpoints: pickled weights, shards without an index, adapters.

    pytorch_model*.bin               -+
    model-*-of-*.safetensors         -+- tensors, one after the other -> model*.safetensors
    adapter_model.* onto a base      -+

Names, values and data types stay; an adapter is merged in float32 and rounded to the base's type.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlarl.errors import ConfigError
from vlarl.models.openvla.oft import OPENVLA, named_family
from vlarl.models.openvla.wholeness import check_settings
from vlarl.models.registry import check_any, check_policy_checkpoint, is_openvla
from vlarl.models.statistics import STATISTICS
from vlarl.weights.checkpoint import CheckpointReader, NotFiniteError, save_tensors
from vlarl.weights.folder import (
    FAMILY_FILE,
    INDEX,
    SINGLE,
    CheckpointError,
    read_json,
    weight_files,
)
from vlarl.weights.headers import read_header
from vlarl.weights.whereabouts import (
    ADAPTER_CONFIG,
    pickled_weights,
    pointer_sentence,
)

_PICKLED_INDEX = "pytorch_model.bin.index.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_PLAIN_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""`init_lora_weights` by which PEFT leaves the base as it was; others (pissa, olora, corda, loftq,
lora_ga) take from it what the factors begin with."""
_LEFT_BEHIND = {".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".gguf"}


@dataclass(frozen=True)
class Adoption:
    """What becomes a checkpoint, looked at before anything is written."""

    files: Path
    """Folder with the configuration, the tokenizer and the like."""
    statistics: Path | None
    """File that replaces the dataset statistics there, an adapter's; none: those stay."""
    size: int
    """Bytes of the weights."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    family: Mapping[str, object] | None = None
    """What ``family.json`` will say; none: it stays as it is, or is none."""
    look: Callable[[Path], object] = lambda _: None
    """Raises where the settings in a folder can't be used, before its weights are written."""

    def write(self, folder: Path, seen: Callable[[int], object] = lambda _: None) -> None:
        """Fills a new folder, and looks whether it can be loaded.

        Args:
            folder: empty, on a disk with room.
            seen: hears the bytes of each tensor as it is taken.

        Raises:
            ConfigError, CheckpointError: it isn't whole.
        """
        try:
            for path in self.files.iterdir():
                if _is_kept(path):
                    shutil.copyfile(path, folder / path.name)
            if self.statistics is not None:
                shutil.copyfile(self.statistics, folder / STATISTICS)
            if self.family is not None:
                written = json.dumps(self.family, indent=1) + "\n"
                (folder / FAMILY_FILE).write_text(written, encoding="utf-8")
            self._check(folder, self.look)
            save_tensors(folder, _reported(_apart(self.tensors()), seen))
            self._check(folder, check_any)
        except NotFiniteError as error:
            raise CheckpointError(
                f"{self.files}: its weights have numbers that aren't finite: no policy acts by them"
            ) from error
        except KeyboardInterrupt:
            shutil.rmtree(folder)
            raise

    def _check(self, folder: Path, check: Callable[[Path], object]) -> None:
        """A check in whose sentences stand the files that people have: the folder's go."""
        try:
            check(folder)
        except (ConfigError, CheckpointError) as error:
            text = str(error)
            if self.family is not None:
                text = text.replace(str(folder / FAMILY_FILE), str(self.files))
            if self.statistics is not None:
                text = text.replace(str(folder / STATISTICS), str(self.statistics))
            raise type(error)(text.replace(str(folder), str(self.files))) from error


def find_adoption(source: Path, base: Path | None = None) -> Adoption:
    """What can be made of a folder that isn't OpenVLA-OFT's.

    Args:
        source: folder of pickled weights, of shards without an index, or of an adapter.
        base: folder of the model that the adapter belongs to.

    Raises:
        ConfigError, CheckpointError: nothing, or nothing needs to be done; the message says why.
    """
    if is_whole(source):
        check_any(source)
        raise ConfigError(f"{source} can be loaded as it is")
    if is_adapter(source):
        return of_adapter(source, base)
    refuse_base(source, base)
    if is_openvla(source) and named_family(source) == OPENVLA:
        check_settings(source)
    return of_weights(source)


def is_whole(source: Path) -> bool:
    """Whether a folder's weights have the form in which they are loaded."""
    return (source / SINGLE).exists() or (source / INDEX).exists()


def is_adapter(source: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    named = any((source / name).exists() for name in (ADAPTER_CONFIG, *_ADAPTERS))
    return named and not is_whole(source) and not pickled_weights(source)


def refuse_base(source: Path, base: Path | None) -> None:
    """Of a folder that is no adapter.

    Raises:
        ConfigError: a base is named.
    """
    if base is not None:
        raise ConfigError(f"{source} is no adapter ({ADAPTER_CONFIG} is missing): leave --base out")


def of_weights(source: Path) -> Adoption:
    """Of shards without an index, or of pickled weights.

    Raises:
        CheckpointError: some are missing, or there are none.
    """
    if shards := sorted(source.glob("model-*-of-*.safetensors")):
        _check_all_there(shards)
        for path in shards:
            read_header(path)
        size = sum(path.stat().st_size for path in shards)
        return Adoption(source, None, size, lambda: _of_files(shards, load_file))
    pickled = _pickled(source)
    size = sum(path.stat().st_size for path in pickled)
    return Adoption(source, None, size, lambda: _of_files(pickled, unpickled))


def unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote: nothing else in it is built, and nothing run.

    The one place where a pickle is read; newer files are mapped, not read into memory.

    Raises:
        CheckpointError: it is cut short, a Git LFS pointer, or holds other things than tensors.
    """
    if pointer := pointer_sentence(path):
        raise CheckpointError(pointer)
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # what unpickling raises has many classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as weights; it may be cut short: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not tensors by name")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor")
    return content


def _pickled(source: Path) -> list[Path]:
    """The files of pickled weights, all of them there."""
    found = pickled_weights(source)
    index = source / _PICKLED_INDEX
    if index.exists():
        try:
            names = {str(name) for name in read_json(index)["weight_map"].values()}
        except (KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} has no weight_map") from error
        found = sorted(source / Path(name).name for name in names)
    if not found:
        weight_files(source)  # says what is to be done
    for path in found:
        if not path.is_file():
            raise CheckpointError(f"checkpoint {source} is incomplete: {path.name} is missing")
        if pointer := pointer_sentence(path):
            raise CheckpointError(pointer)
    _check_all_there(found)
    return found


def _check_all_there(shards: list[Path]) -> None:
    """By the number that the names of shards end in: NAME-00001-of-00004."""
    total = shards[0].stem.rpartition("-of-")[2]
    if total.isdigit() and len(shards) != int(total):
        raise CheckpointError(
            f"{shards[0].parent}: of {int(total)} files such as {shards[0].name} there are "
            f"{len(shards)}"
        )


def of_adapter(source: Path, base: Path | None) -> Adoption:
    """Of an adapter, merged onto its base.

    Raises:
        ConfigError: no base is named, it is none, or the adapter is of a kind that isn't merged.
        CheckpointError: files are missing or broken, or belong to another base.
    """
    config = read_json(source / ADAPTER_CONFIG)
    if base is None:
        named = config.get("base_model_name_or_path") or "the model that it was trained on"
        raise ConfigError(f"{source} is an adapter: name the folder of {named} with --base")
    check_policy_checkpoint(base)
    size = sum(path.stat().st_size for path in weight_files(base))
    factors, scaling = _factors(source), _scaling(source, config)
    reader = CheckpointReader(base)
    for layer, (a, b) in factors.items():
        shape = reader.shape(f"{layer}.weight") if f"{layer}.weight" in reader else None
        if a.ndim != 2 or b.ndim != 2 or shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(f"{source}: {layer} doesn't fit {base}: is it another's base?")

    def merged() -> Iterator[tuple[str, Tensor]]:
        for key in reader:
            weight = reader.tensor(key)
            if key.removesuffix(".weight") in factors:
                a, b = factors[key.removesuffix(".weight")]
                delta = scaling * (b.float() @ a.float())
                weight = (weight.float() + delta).to(weight.dtype)
            yield key, weight

    statistics = source / STATISTICS
    return Adoption(base, statistics if statistics.exists() else None, size, merged)


def _scaling(source: Path, config: Mapping[str, Any]) -> float:
    """The adapter's: alpha / r, by rsLoRA alpha / sqrt(r)."""
    extras = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    odd = [name for name in extras if config.get(name)]
    odd += ["bias"] * (config.get("bias", "none") != "none")
    if config.get("peft_type") != "LORA" or odd:
        what = ", ".join(odd) or f"peft_type {config.get('peft_type')}"
        raise ConfigError(
            f"{source / ADAPTER_CONFIG}: {what} isn't supported here; merge it with PEFT's "
            "merge_and_unload()"
        )
    begun = config.get("init_lora_weights")
    if (begun.lower() if isinstance(begun, str) else begun) not in _PLAIN_BASE:
        raise ConfigError(
            f"{source / ADAPTER_CONFIG}: init_lora_weights is {begun!r}, so the adapter belongs to "
            "a base that its training changed, not to the model itself: merge it there with PEFT's "
            "merge_and_unload(), or save it with path_initial_model_for_weight_conversion"
        )
    try:
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{source / ADAPTER_CONFIG} names no r and lora_alpha") from error
    if not math.isfinite(scaling):
        raise ConfigError(f"{source / ADAPTER_CONFIG}: lora_alpha isn't finite")
    return scaling


def _factors(source: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, in] and B [out, rank] of each layer, by its key in the base without ".weight"."""
    path = next((source / name for name in _ADAPTERS if (source / name).exists()), None)
    if path is None:
        raise CheckpointError(f"{source} is incomplete: {_ADAPTERS[0]} is missing")
    if path.suffix == ".safetensors":
        read_header(path)
        stored = load_file(path)
    else:
        stored = unpickled(path)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name = key.removeprefix("base_model.model.").replace(".default.weight", ".weight")
        layer, _, factor = name.removesuffix(".weight").rpartition(".")
        if factor not in ("lora_A", "lora_B") or not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {key} is no factor of LoRA with finite numbers")
        pairs.setdefault(layer, {})[factor] = tensor
    if halved := [layer for layer, pair in pairs.items() if len(pair) != 2] or not pairs:
        raise CheckpointError(f"{path}: a factor is missing: {halved if pairs else 'all are'}")
    return {layer: (pair["lora_A"], pair["lora_B"]) for layer, pair in pairs.items()}


def _of_files(
    paths: Iterable[Path], read: Callable[[Path], dict[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        try:
            yield from read(path).items()
        except SafetensorError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error


def _apart(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that share no memory, as safetensors wants them: tied ones become copies."""
    places: set[int] = set()
    for key, tensor in tensors:
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes
        if not alone or tensor.data_ptr() in places:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        places.add(tensor.data_ptr())
        yield key, tensor


def _reported(
    tensors: Iterable[tuple[str, Tensor]], seen: Callable[[int], object]
) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors:
        seen(tensor.nbytes)
        yield key, tensor


def _is_kept(path: Path) -> bool:
    weights = path.suffix in _LEFT_BEHIND or path.name in (INDEX, _PICKLED_INDEX)
    return path.is_file() and not weights and path.name != ADAPTER_CONFIG
