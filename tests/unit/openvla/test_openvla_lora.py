from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

import torch
from peft import LoraConfig, get_peft_model

from vlarl.errors import ConfigError
from vlarl.models.network import pad_prompts
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.network import OpenVLA, load_model
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.openvla.tiny import libero_instructions, make_tiny_checkpoint
from vlarl.weights.checkpoint import CheckpointReader, base_digest, tensors_digest
from vlarl.weights.merge import merged_tensors

pytestmark = pytest.mark.torch

GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_checkpoint(directory, seed=0)
    return directory


def _inputs(checkpoint: Path) -> Inputs:
    config = OpenVLAConfig.from_directory(checkpoint)
    generator = torch.Generator().manual_seed(0)
    shape = (3, config.spec.image_size, config.spec.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy()
    pixels = torch.from_numpy(PixelNormalizer.from_directory(checkpoint)(frames))
    builder = PromptBuilder(checkpoint)
    prompts = [builder.token_ids(text) for text in libero_instructions()[:3]]
    first = config.spec.action_ids.start
    action_ids = torch.randint(first, first + 256, (3, 7), generator=generator)
    return (pixels, *pad_prompts(prompts, config.pad_token_id), action_ids)


def _factors(checkpoint: Path, rank: int = 4) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    return {
        layer: (
            torch.randn(rank, into, generator=generator) / into**0.5,
            0.05 * torch.randn(out, rank, generator=generator),
        )
        for layer, (out, into) in layers.items()
    }


@pytest.mark.parametrize("checkpoint", ["golden", "tiny"])
def test_the_layers_are_the_linear_ones_that_the_forward_pass_calls(
    checkpoint: str, tiny: Path
) -> None:
    directory = GOLDEN if checkpoint == "golden" else tiny
    model = load_model(directory)
    called: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def note(module: torch.nn.Linear, *_: object, name: str = name) -> None:
                called[name] = tuple(module.weight.shape)

            module.register_forward_hook(note)
    with torch.inference_mode():
        model(*_inputs(directory))
    assert called == lora_layers(model.config)


def test_merged_weights_act_like_peft(tiny: Path) -> None:
    """Reached: 1e-6."""
    model = load_model(tiny)
    inputs = _inputs(tiny)
    factors = _factors(tiny)
    with torch.inference_mode():
        base = model(*inputs).logits
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(factors))
    adapted = get_peft_model(load_model(tiny), config)
    for name, module in adapted.named_modules():
        layer = name.removeprefix("base_model.model.")
        if layer in factors:
            module.lora_A["default"].weight.data, module.lora_B["default"].weight.data = factors[
                layer
            ]
    model.load_state_dict(
        dict(
            merged_tensors(
                tiny, lora_layers(OpenVLAConfig.from_directory(tiny)), factors, 2.0, torch.float32
            )
        ),
        strict=False,
    )
    with torch.inference_mode():
        ours, theirs = model(*inputs).logits, adapted(*inputs).logits
    assert (theirs - base).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_gradients_reach_every_adapter(tiny: Path) -> None:
    layers = lora_layers(OpenVLAConfig.from_directory(tiny))
    config = LoraConfig(r=2, target_modules=list(layers), init_lora_weights="gaussian")
    adapted = get_peft_model(load_model(tiny), config)
    adapted(*_inputs(tiny)).logits.logsumexp(-1).sum().backward()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(layers)
    assert all(grad.abs().sum() > 0 for name, grad in trained.items() if "lora_B" in name)


def test_merging_adds_in_float32_and_rounds_last(tiny: Path) -> None:
    layer = "projector.fc3"
    a, b = (factor.bfloat16() for factor in _factors(tiny)[layer])
    layers = lora_layers(OpenVLAConfig.from_directory(tiny))
    base = CheckpointReader(tiny).tensor("projector.fc3.weight")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        exact = base.to(dtype).float() + 0.5 * (b.float() @ a.float())
        ((key, merged),) = merged_tensors(tiny, layers, {layer: (a, b)}, 0.5, dtype)
        assert key == "projector.fc3.weight"
        assert merged.dtype == dtype
        # One of the two numbers that the exact one lies between.
        below = exact.to(dtype)
        towards = torch.where(exact > below.float(), torch.inf, -torch.inf).to(dtype)
        neighbour = torch.nextafter(below, towards)
        between = (merged == below) | (merged == neighbour)
        assert between.all()
        if dtype != torch.float32:
            assert 0.2 < (merged == below).float().mean() < 0.9


def test_layers_of_an_earlier_adapter_are_restored(tiny: Path) -> None:
    factors = {"projector.fc1": _factors(tiny)["projector.fc1"]}
    restored = dict(
        merged_tensors(
            tiny,
            lora_layers(OpenVLAConfig.from_directory(tiny)),
            factors,
            1.0,
            torch.float32,
            {"projector.fc1", "projector.fc2"},
        )
    )
    assert list(restored) == ["projector.fc1.weight", "projector.fc2.weight"]
    base = CheckpointReader(tiny)
    assert torch.equal(restored["projector.fc2.weight"], base.tensor("projector.fc2.weight"))
    assert not torch.equal(restored["projector.fc1.weight"], base.tensor("projector.fc1.weight"))


def test_the_merged_digest_is_the_weights(tiny: Path) -> None:
    factors = _factors(tiny)

    def digest(scaling: float) -> str:
        return tensors_digest(
            merged_tensors(
                tiny,
                lora_layers(OpenVLAConfig.from_directory(tiny)),
                factors,
                scaling,
                torch.float32,
            )
        )

    assert digest(1.0) == digest(1.0)
    assert digest(1.0) != digest(1.001)
    backwards = dict(reversed(factors.items()))
    assert tensors_digest(
        merged_tensors(
            tiny, lora_layers(OpenVLAConfig.from_directory(tiny)), backwards, 1.0, torch.float32
        )
    ) == digest(1.0)


def test_factors_that_do_not_fit_are_refused_at_once(tiny: Path) -> None:
    a, b = _factors(tiny)["projector.fc1"]
    for wrong in ({"projector.fc1": (b, a)}, {"projector.fc1": (a[:2], b)}):
        with pytest.raises(ValueError, match=r"projector\.fc1"):
            merged_tensors(
                tiny, lora_layers(OpenVLAConfig.from_directory(tiny)), wrong, 1.0, torch.float32
            )
    for layer in ("language_model.lm_head", "vision_backbone.featurizer.blocks.2.attn.qkv"):
        with pytest.raises(ValueError, match="no layer for LoRA"):
            merged_tensors(
                tiny,
                lora_layers(OpenVLAConfig.from_directory(tiny)),
                {layer: (a, b)},
                1.0,
                torch.float32,
            )


def test_a_tiny_checkpoint_is_tiny_deterministic_and_near_uniform(tmp_path: Path) -> None:
    config = make_tiny_checkpoint(tmp_path / "a", seed=4)
    make_tiny_checkpoint(tmp_path / "b", seed=4)
    make_tiny_checkpoint(tmp_path / "c", seed=5)
    assert base_digest(tmp_path / "a") == base_digest(tmp_path / "b")
    assert base_digest(tmp_path / "a") != base_digest(tmp_path / "c")
    for name in ("tokenizer.json", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    model = load_model(tmp_path / "a")
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_300_000
    assert (config.spec.image_size, config.num_patches, config.spec.center_crop) == (84, 36, False)
    with torch.inference_mode():
        logprobs = model(*_inputs(tmp_path / "a")).logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    assert entropy.min() > 5.4
    assert logprobs.exp().max() < 0.02


def test_the_tiny_policy_sees_and_reads(tiny: Path) -> None:
    model = load_model(tiny)
    pixels, ids, lengths, _ = _inputs(tiny)
    with torch.inference_mode():
        feature = model(pixels[:1], ids[:1], lengths[:1]).feature
        other_image = model(pixels[1:2], ids[:1], lengths[:1]).feature
        other_text = model(pixels[:1], ids[1:2], lengths[1:2]).feature
    assert (feature - other_image).abs().mean() > 0.05
    assert (feature - other_text).abs().mean() > 0.05


def test_prompts_leave_the_action_ids_alone(tiny: Path) -> None:
    builder = PromptBuilder(tiny)
    prompts = [builder.token_ids(text) for text in libero_instructions()]
    assert len(prompts) == 112
    assert len({tuple(prompt) for prompt in prompts}) == 112
    assert max(map(max, prompts)) < 512
    assert {prompt[0] for prompt in prompts} == {builder.bos_id}
    assert {prompt[-1] for prompt in prompts} == {builder.space_id}
    assert max(map(len, prompts)) <= 48


def test_other_tiny_sizes(tmp_path: Path) -> None:
    config = make_tiny_checkpoint(
        tmp_path, image_size=56, tower_dim=96, tower_depth=2, text_dim=64, text_layers=1
    )
    assert isinstance(load_model(tmp_path), OpenVLA)
    assert config.num_patches == 16
    with pytest.raises(ConfigError, match="impossible size"):
        make_tiny_checkpoint(tmp_path / "odd", image_size=60)
    with pytest.raises(ValueError, match="multiple of 32"):
        make_tiny_checkpoint(tmp_path / "odd", text_dim=100)
