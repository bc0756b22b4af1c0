"""The weight swap's half inside vLLM's workers: merge the adapter, reload the layers it moves.

Every worker reads the factors from the path it is given and W0 from its own checkpoint, so nothing
but a path crosses the engine's process boundary, and no second copy of the weights is kept.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from vlarl.models.registry import lora_layers
from vlarl.weights.adapter import read_adapter
from vlarl.weights.checkpoint import tensors_digest
from vlarl.weights.merge import merged_tensors

_LANGUAGE_MODEL = "language_model."
"""Where all models that vLLM serves here have their language model."""


class _ServedModel(Protocol):
    """What a merge needs of vLLM's model."""

    packed_modules_mapping: dict[str, list[str]]
    """A module of vLLM's to the checkpoint's layers that it fuses."""

    def get_submodule(self, target: str) -> nn.Module: ...
    def get_parameter(self, target: str) -> nn.Parameter: ...
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]: ...


class MergeWorker:
    """Methods that vLLM adds to its worker (`worker_extension_cls`)."""

    def merge_adapter(self, path: str | None, threads: int) -> str:
        """Makes the weights W0 + s * B @ A of the adapter at `path`, or W0 where it is none.

        Layers that the adapter before had changed, and this one leaves alone, go back to W0. If it
        fails half way, a further call with an adapter that works makes the weights whole.

        Args:
            path: an adapter's file; none: W0.
            threads: of torch, where it has fewer, for as long as the merge takes.

        Returns:
            SHA-256 (hex) of the merged tensors in the engine's data type; empty for W0.
        """
        adapter = read_adapter(Path(path)) if path else None
        factors = adapter.factors if adapter else {}
        # Stays too large if this call fails: the next one then rewrites all that may be broken.
        moved: set[str] = getattr(self, "_moved_layers", set()) | factors.keys()
        self._moved_layers = moved
        config = self.model_config  # type: ignore[attr-defined]
        model = self.get_model()  # type: ignore[attr-defined]
        weights = merged_tensors(
            config.model,
            lora_layers(config.model),
            factors,
            adapter.scaling if adapter else 1.0,
            config.dtype,
            restore=_whole_modules(model, moved),
        )
        with torch.no_grad(), _at_least(threads), _digesting() as digest:
            tapped = _tap(weights, {f"{layer}.weight" for layer in factors}, digest)
            _load(model, tapped, moved, config)
        self._moved_layers = set(factors)
        return digest.result() if factors else ""


@contextmanager
def _at_least(threads: int) -> Iterator[None]:
    # On CUDA vLLM goes down to one thread once the weights are loaded: enough to act, but nobody
    # acts while one core of many merges 7B's weights.
    before = torch.get_num_threads()
    if threads <= before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _whole_modules(model: _ServedModel, layers: Iterable[str]) -> set[str]:
    """The layers, and those that vLLM fuses with them: a fused module reloads as a whole."""
    whole: set[str] = set()
    for layer in layers:
        parent, _, name = layer.rpartition(".")
        parts = next((p for p in model.packed_modules_mapping.values() if name in p), [name])
        whole.update(f"{parent}.{part}" for part in parts)
    return whole


def _module_of(model: _ServedModel, layer: str) -> nn.Module:
    parent, _, name = layer.rpartition(".")
    fused = next((f for f, p in model.packed_modules_mapping.items() if name in p), name)
    return model.get_submodule(f"{parent}.{fused}")


def _load(
    model: _ServedModel,
    weights: Iterable[tuple[str, torch.Tensor]],
    layers: Iterable[str],
    config: object,
) -> None:
    # The language model's layers may lie in memory in another form than the checkpoint's (packed
    # for the CPU, captured in CUDA graphs), so they go through vLLM's own reload, module by
    # module. The towers and the projector are plain torch.
    modules = {_module_of(model, layer) for layer in layers if layer.startswith(_LANGUAGE_MODEL)}

    def language_weights() -> Iterator[tuple[str, torch.Tensor]]:
        for key, tensor in weights:
            if key.startswith(_LANGUAGE_MODEL):
                yield key, tensor
            else:
                model.get_parameter(key).copy_(tensor)

    try:
        for module in modules:
            initialize_layerwise_reload(module)
        model.load_weights(language_weights())
    finally:
        for module in modules:
            finalize_layerwise_reload(module, config)


class _Digest:
    """The digest of tensors that pass by, computed beside the loading."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._tensors: queue.Queue[tuple[str, torch.Tensor] | None] = queue.Queue(maxsize=2)
        self._future = threads.submit(tensors_digest, iter(self._tensors.get, None))

    def put(self, item: tuple[str, torch.Tensor] | None) -> None:
        """Takes the next tensor; none ends the digest."""
        while not self._future.done():
            try:
                self._tensors.put(item, timeout=1.0)
            except queue.Full:  # slow, or dead: then `result` has its error
                continue
            return

    def result(self) -> str:
        """The SHA-256 (hex), once all tensors are in."""
        return self._future.result()


@contextmanager
def _digesting() -> Iterator[_Digest]:
    with ThreadPoolExecutor(max_workers=1) as threads:
        digest = _Digest(threads)
        try:
            yield digest
        finally:
            digest.put(None)


def _tap(
    weights: Iterable[tuple[str, torch.Tensor]], keys: set[str], digest: _Digest
) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in weights:
        if key in keys:
            digest.put((key, tensor))
        yield key, tensor
