"""The weight swap's half inside vLLM's workers.

    prepare   while actions go on, on a thread of its own: merge the adapter, layer by layer, into
              new memory in the engine's form
    exchange  while the engine is paused: put it in the place of what serves

Every worker reads the factors from the path it is given and W0 from its own checkpoint, so nothing
but a path crosses the engine's process boundary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

from vlarl.models.registry import lora_layers
from vlarl.weights.adapter import read_adapter
from vlarl.weights.merge import checksum, merged_tensors
from vlarl_policy.merge_answer import write_answer

_GPU_BYTES_LEFT = 2 << 30
"""What others may want of a GPU's free memory meanwhile."""


class _ServedModel(Protocol):
    """What a merge needs of vLLM's model."""

    packed_modules_mapping: dict[str, list[str]]
    """A module of vLLM's to the checkpoint's layers that it fuses."""

    def get_submodule(self, target: str) -> nn.Module: ...


class MergeWorker:
    """Methods that vLLM adds to its worker (`worker_extension_cls`)."""

    def prepare_adapter(
        self, path: str | None, checked: Collection[str], threads: int, answer: str
    ) -> None:
        """Begins to make the weights W0 + s * B @ A of the adapter at `path`, or W0 where it is
        none, and returns at once. What was prepared before is forgotten.

        Layers that the adapter before had changed, and this one leaves alone, go back to W0.

        Args:
            path: an adapter's file; none: W0.
            checked: layers of whose merged weights checksums are wanted.
            threads: of torch, on a CPU.
            answer: a file that is written, whole, when all is prepared, or when something has
                stopped it and nothing has changed; see merge_answer.py. A call that asks would be
                answered between two steps of the engine, and hold the exchange up for the next.
        """
        config = self.model_config  # type: ignore[attr-defined]
        model = self.get_model()  # type: ignore[attr-defined]
        moved: set[str] = getattr(self, "_moved_layers", set())
        thread = ThreadPoolExecutor(1, "merge", torch.set_num_threads, (threads,))
        self._preparing: Future[_Prepared] = thread.submit(
            _prepare, model, config.model, config.dtype, path, moved, set(checked)
        )
        self._preparing.add_done_callback(partial(_tell, Path(answer)))
        thread.shutdown(wait=False)

    def exchange_weights(self) -> None:
        """Puts what was prepared in the place of what serves, while the engine is paused.

        If it fails half way, weights are broken until another adapter is prepared and exchanged.
        """
        prepared = self._preparing.result()
        # Stays too large if this fails: the next one then rewrites all that may be broken.
        self._moved_layers = getattr(self, "_moved_layers", set()) | prepared.moved
        with torch.no_grad():
            for module, weight in prepared.weights:
                weight.put(module)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._moved_layers = prepared.moved
        del self._preparing

    def stamp_answers(self, version: int) -> None:
        """From now on a pooling model's answers carry this version; while the engine is paused."""
        self.get_model().pooler.version = version  # type: ignore[attr-defined]


def _tell(answer: Path, preparing: Future[_Prepared]) -> None:
    error = preparing.exception()
    write_answer(answer, str(error) or repr(error) if error else preparing.result().checksums)


class _Weight:
    """A module's new weight, in the form that the engine computes with."""

    def __init__(self, module: nn.Module, weight: Tensor) -> None:
        self._weight = weight
        self._product = None
        if hasattr(module, "cpu_linear"):
            # vLLM packs a CPU's weights, and keeps the packed form in a function. The same here
            # makes the new one beside it.
            packed = nn.Module()
            packed.weight = nn.Parameter(weight, requires_grad=False)
            dispatch_cpu_unquantized_gemm(packed, remove_weight=True)
            self._weight = packed.weight.data  # empty where it was packed
            self._product = packed.cpu_linear

    def put(self, module: nn.Module) -> None:
        """Makes it the module's."""
        if self._product is not None:
            module.cpu_linear = self._product
        if not self._weight.numel():
            return
        old = module.weight
        assert isinstance(old, Tensor)  # noqa: S101 - a linear layer's
        if old.is_cuda:
            # Captured graphs know where it lies.
            old.copy_(self._weight, non_blocking=True)
        else:
            old.data = self._weight


class _Prepared:
    """All that an exchange puts into place."""

    def __init__(self, moved: set[str]) -> None:
        self.moved = moved
        self.weights: list[tuple[nn.Module, _Weight]] = []
        self.checksums: dict[str, int] = {}


@torch.no_grad()
def _prepare(
    model: _ServedModel,
    checkpoint: str,
    dtype: torch.dtype,
    path: str | None,
    moved: set[str],
    checked: set[str],
) -> _Prepared:
    adapter = read_adapter(Path(path)) if path else None
    factors = adapter.factors if adapter else {}
    prepared = _Prepared(set(factors))
    modules = dict(_modules(model, moved | factors.keys()))
    layers = lora_layers(checkpoint)
    wanted = [layer for parts in modules.values() for layer in parts]
    device = _device(next(iter(modules))) if modules else torch.device("cpu")
    with _beside_the_actions(device):
        merged = merged_tensors(
            checkpoint,
            # In the modules' order, so that no more than one of them is half done.
            {layer: layers[layer] for layer in wanted},
            factors,
            adapter.scaling if adapter else 1.0,
            dtype,
            restore=wanted,
            device=device,
        )
        size = sum(layers[layer][0] * layers[layer][1] for layer in wanted) * dtype.itemsize
        target = _room(device, size)
        for module, parts in modules.items():
            rows = sum(layers[layer][0] for layer in parts)
            whole = torch.empty(
                (rows, layers[parts[0]][1]), dtype=dtype, device=target, pin_memory=target != device
            )
            first = 0
            for layer in parts:
                _, weight = next(merged)
                if layer in checked:
                    prepared.checksums[layer] = checksum(weight)
                whole[first : first + len(weight)] = weight
                first += len(weight)
            prepared.weights.append((module, _Weight(module, whole)))
    return prepared


def _modules(model: _ServedModel, layers: Iterable[str]) -> Iterator[tuple[nn.Module, list[str]]]:
    """The engine's modules that have these layers, each with all of the layers that it fuses."""
    seen = set()
    for layer in sorted(layers):
        parent, _, name = layer.rpartition(".")
        fused = [one for one in model.packed_modules_mapping.items() if name in one[1]]
        module, parts = fused[0] if fused else (name, [name])
        if (parent, module) not in seen:
            seen.add((parent, module))
            found = model.get_submodule(f"{parent}.{module}")
            yield found, [f"{parent}.{part}" for part in parts]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _room(device: torch.device, size: int) -> torch.device:
    """Where so many bytes may wait: on the device, or where it is too full, in pinned memory."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < size + _GPU_BYTES_LEFT:
        return torch.device("cpu")
    return device


@contextlib.contextmanager
def _beside_the_actions(device: torch.device) -> Iterator[None]:
    """On a GPU: in a queue of its own."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
    stream.synchronize()
