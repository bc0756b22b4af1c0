"""Layers of a network and the LoRA factors that change them.

    W = round(W0 + (alpha / rank) * B @ A)      A gaussian, B zero, W0 never changes

A pass computes with W, the very weights that the policy server has, and not with W0 and the factors
beside it: in 16 bits the two differ by as much as an update does (docs/decisions/0017). The
gradient of W goes to the factors as if nothing were rounded, and costs what LoRA's always does: the
gradient of a whole W is never made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import peft
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from vlarl.config import LoraConfig
from vlarl.weights.merge import checksum, merge


class MergedLinear(nn.Module):
    """y = x W^T + bias, whose gradient goes to the factors of W."""

    def __init__(self, linear: nn.Linear, a: nn.Parameter, b: nn.Parameter, scaling: float) -> None:
        """Args:
        linear: has W0, frozen.
        a: A [rank, in], float32.
        b: B [out, rank], float32.
        scaling: alpha / rank.
        """
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a, self.lora_b = a, b
        self._scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        product: Tensor = _MergedProduct.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.lora_a, self.lora_b, self._scaling
        )
        return product


class _MergedProduct(torch.autograd.Function):
    """x W^T + bias with, for G = dL/dy:  dA = s B^T G^T x  and  dB = s G^T (x A^T)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, a, b = ctx.saved_tensors
        (grad,) = grads
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_a = ((grad_rows @ b.to(grad.dtype)).T @ rows).to(a.dtype) * ctx.scaling
        grad_b = (grad_rows.T @ (rows @ a.to(x.dtype).T)).to(b.dtype) * ctx.scaling
        return grad_x, None, None, grad_a, grad_b, None


class MergedLayers:
    """All adapted layers of one network: which weights they hold now, and what is learned."""

    def __init__(self, model: nn.Module, lora: LoraConfig, seed: int, wanted: list[str]) -> None:
        """Puts a `MergedLinear` in the place of these layers of a frozen model, by name."""
        self._scaling = scaling = lora.alpha / lora.rank
        self._layers: dict[str, MergedLinear] = {}
        for name, layer in add_factors(model, lora, seed, wanted).items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            self._layers[name] = MergedLinear(layer.get_base_layer(), a, b, scaling)
            model.set_submodule(name, self._layers[name])
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._weights: dict[str, Tensor] = {}
        self._base: dict[str, Tensor] = {}
        self._merged_of: list[int] = []
        self._holds_base = True

    def keep_base(self) -> None:
        """Remembers W0, this rank's rows of it: the first call, once the model is sharded."""
        for name, layer in self._layers.items():
            # A sharded layer has now these parameters, now whole ones.
            self._factors[name] = layer.lora_a, layer.lora_b
            self._weights[name] = layer.weight
            # A shard is written into; whole weights are exchanged, and W0 may stay in its file.
            sharded = isinstance(layer.weight, DTensor)
            own = _own(layer.weight)
            self._base[name] = own.clone() if sharded else own
        self._merged_of = self._versions()  # B is zero: W is W0
        self._holds_base = False

    @property
    def names(self) -> list[str]:
        """Of the layers."""
        return list(self._layers)

    def named_factors(self) -> dict[str, nn.Parameter]:
        """What is learned, float32: "LAYER.A", "LAYER.B"."""
        named = {}
        for name, (a, b) in self._factors.items():
            named[f"{name}.A"] = a
            named[f"{name}.B"] = b
        return named

    @torch.no_grad()
    def hold_merged(self, model: nn.Module) -> None:
        """Has the layers hold W of the factors as they are. Every rank must call it."""
        versions = self._versions()
        if versions == self._merged_of and not self._holds_base:
            return
        _forget_gathered(model)
        for name, weight in self._weights.items():
            a, b = (_all_rows(factor) for factor in self._factors[name])
            base, first = self._base[name], _first_row(weight)
            rows = b[first : first + len(base)]
            _replace(weight, merge(base, (a, rows), self._scaling, base.dtype, first))
        self._merged_of, self._holds_base = versions, False

    @torch.no_grad()
    def hold_base(self, model: nn.Module) -> None:
        """Has the layers hold W0. Every rank must call it."""
        if self._holds_base:
            return
        _forget_gathered(model)
        for name, weight in self._weights.items():
            _replace(weight, self._base[name])
        self._holds_base = True

    def checksums(self, layers: Iterable[str]) -> dict[str, int]:
        """Of what these layers hold, whole; every rank must call it."""
        names = list(layers)
        parts = []
        sharded = False
        for name in names:
            weight = self._weights[name]
            sharded |= isinstance(weight, DTensor)
            parts.append(checksum(_own(weight), _first_row(weight)))
        # 64-bit sums wrap around, with a sign in torch.
        sums = torch.tensor([part - 2**64 if part >= 2**63 else part for part in parts])
        if sharded and len(names):
            dist.all_reduce(sums)
        return {name: one % 2**64 for name, one in zip(names, sums.tolist(), strict=True)}

    def _versions(self) -> list[int]:
        """Torch counts every change of a tensor in place: an optimizer's step, a checkpoint's."""
        return [factor._version for pair in self._factors.values() for factor in pair]


def add_factors(
    model: nn.Module, lora: LoraConfig, seed: int, wanted: list[str]
) -> dict[str, LoraLayer]:
    """Puts factors, float32 and drawn with the seed, beside these layers of a model, by name."""
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=wanted,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if wrong := found.keys() ^ set(wanted):
        raise ValueError(f"LoRA landed on other layers than asked: {', '.join(sorted(wrong)[:8])}")
    for layer in found.values():
        # The optimizer's copy stays in float32, whatever the passes compute in.
        layer.lora_A.float()
        layer.lora_B.float()
    return {name: found[name] for name in wanted}


def named_factors(layers: dict[str, LoraLayer]) -> dict[str, nn.Parameter]:
    """The factors of what `add_factors` returned: "LAYER.A", "LAYER.B"."""
    named = {}
    for name, layer in layers.items():
        named[f"{name}.A"] = layer.lora_A["default"].weight
        named[f"{name}.B"] = layer.lora_B["default"].weight
    return named


def _own(parameter: Tensor) -> Tensor:
    """The part of a parameter that is this rank's: no copy."""
    if not isinstance(parameter, DTensor):
        return parameter.detach()
    local: Tensor = parameter._local_tensor.detach()
    return local


def _all_rows(parameter: Tensor) -> Tensor:
    detached = parameter.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def _first_row(parameter: Tensor) -> int:
    """Where this rank's rows begin: FSDP gives each rank equally many, the last ones fewer."""
    if not isinstance(parameter, DTensor):
        return 0
    mesh = parameter.device_mesh
    share = -(-parameter.shape[0] // mesh.size())
    return min(mesh.get_local_rank() * share, parameter.shape[0])


def _replace(parameter: Tensor, values: Tensor) -> None:
    if isinstance(parameter, DTensor):
        parameter._local_tensor.copy_(values)
    else:
        parameter.data = values


def _forget_gathered(model: nn.Module) -> None:
    """Drops the copies of whole weights that FSDP keeps from one pass to the next."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
