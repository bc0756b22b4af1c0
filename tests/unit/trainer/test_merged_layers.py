"""Layers that compute with merged weights: the same function, and the gradient of its factors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.config import LoraConfig  # noqa: E402
from vlarl.learning.factors import MergedLayers  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.learning.trainable import LoraPolicy  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.weights.merge import checksum, merged_tensors  # noqa: E402

pytestmark = pytest.mark.torch
LORA = LoraConfig(rank=3, alpha=6)


def network() -> torch.nn.Sequential:
    torch.manual_seed(2)
    plain = torch.nn.Sequential(
        torch.nn.Linear(7, 11), torch.nn.GELU(), torch.nn.Linear(11, 5, bias=False)
    )
    return plain.requires_grad_(False)


def moved(layers: MergedLayers) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for factor in layers.named_factors().values():
            factor.add_(torch.randn(factor.shape, generator=generator) * 0.3)


def test_values_and_gradients_are_those_of_the_formula() -> None:
    model = network()
    plain = {name: model.get_submodule(name) for name in "02"}
    layers = MergedLayers(model, LORA, seed=1, wanted=["0", "2"])
    layers.keep_base()
    moved(layers)
    layers.hold_merged(model)
    x = torch.randn(2, 4, 7, requires_grad=True)
    model(x).square().sum().backward()
    found = {name: one.grad for name, one in layers.named_factors().items()}

    copies = {n: p.detach().clone().requires_grad_() for n, p in layers.named_factors().items()}
    other = x.detach().clone().requires_grad_()
    hidden: torch.Tensor = other
    for name, linear in plain.items():
        weight = (
            network().get_submodule(name).weight + 2.0 * copies[f"{name}.B"] @ copies[f"{name}.A"]
        )
        hidden = torch.nn.functional.linear(hidden, weight, linear.bias)
        hidden = torch.nn.functional.gelu(hidden) if name == "0" else hidden
    hidden.square().sum().backward()
    torch.testing.assert_close(model(x), hidden)
    torch.testing.assert_close(x.grad, other.grad)
    for name, copy in copies.items():
        torch.testing.assert_close(found[name], copy.grad)
    assert all(linear.weight.grad is None for linear in plain.values())


def test_a_step_is_seen_by_the_next_pass_and_the_base_is_there_meanwhile() -> None:
    model = network()
    layers = MergedLayers(model, LORA, seed=1, wanted=["0", "2"])
    layers.keep_base()
    x = torch.randn(3, 7)
    base = model(x)
    optimizer = torch.optim.AdamW(layers.named_factors().values(), lr=0.1)
    seen = [base]
    for _ in range(3):
        layers.hold_merged(model)
        model(x).sum().backward()
        optimizer.step()
        layers.hold_merged(model)
        assert not torch.equal(model(x), seen[-1])
        seen.append(model(x).detach())
        layers.hold_base(model)
        assert torch.equal(model(x), base)
        layers.hold_merged(model)
        assert torch.equal(model(x), seen[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_passes_compute_with_the_bits_that_a_server_has(tmp_path: Path, dtype: torch.dtype) -> None:
    make_tiny_checkpoint(tmp_path, image_size=56)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).digest()
    ranks = Ranks.alone(torch.device("cpu"))
    policy = LoraPolicy(tmp_path, LORA, dtype=dtype, seed=0, ranks=ranks)
    with torch.no_grad():
        for factor in policy.named_parameters().values():
            factor.add_(1e-3)
    named = policy.named_parameters()
    factors = {one: (named[f"{one}.A"], named[f"{one}.B"]) for one in policy.layers}
    shapes = {one: (len(b), a.shape[1]) for one, (a, b) in factors.items()}
    merged = dict(merged_tensors(tmp_path, shapes, factors, policy.scaling, dtype))
    expected = {layer: checksum(merged[f"{layer}.weight"]) for layer in policy.layers}
    assert policy.checksums(policy.layers) == expected
    held = dict(policy._model.named_parameters())
    assert all(torch.equal(held[key], weight) for key, weight in merged.items())
    # Nothing is written into the checkpoint's file, which is mapped.
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).digest() == digest
