"""Features and parameter shapes by timm itself, for the towers' parity test.

Run as a program: ``timm_reference.py DIRECTORY``. It answers every ``NAME.json`` there (and its
``NAME.weights.safetensors``, where it has one) with ``NAME.answer.safetensors``. It has a
process of its own because timm imports torchvision, which isn't installed: empty stand-ins take
its place here, and would mislead other packages in the test's process. No layer of the towers
comes from torchvision.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file


class _AnyAttribute(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Nothing(torch.nn.Module, metaclass=_AnyAttribute):
    pass


class _StandIn(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _TorchvisionFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _features(tower: dict[str, Any], weights: Path) -> dict[str, torch.Tensor]:
    import timm

    model = timm.create_model(tower["timm_id"], num_classes=0, **tower["kwargs"]).eval()
    tensors = load_file(weights)
    pixels = tensors.pop("pixels")
    renamed = {key.replace("scale_factor", "gamma"): value for key, value in tensors.items()}
    model.load_state_dict(renamed, strict=True)
    with torch.inference_mode():
        (features,) = model.get_intermediate_layers(pixels, n={len(model.blocks) - 2})
    return {"features": features.contiguous()}


def _shapes(tower: dict[str, Any]) -> dict[str, torch.Tensor]:
    import timm

    with torch.device("meta"):
        model = timm.create_model(tower["timm_id"], num_classes=0, **tower["kwargs"])
    return {
        key.replace("gamma", "scale_factor"): torch.tensor(value.shape)
        for key, value in model.state_dict().items()
    }


def main(directory: Path) -> None:
    sys.meta_path.insert(0, _TorchvisionFinder())
    for request in sorted(directory.glob("*.json")):
        tower = json.loads(request.read_text())
        weights = request.with_suffix(".weights.safetensors")
        answer = _features(tower, weights) if weights.exists() else _shapes(tower)
        save_file(answer, request.with_suffix(".answer.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
