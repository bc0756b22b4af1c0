"""The vision towers against timm."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

import torch
from safetensors.torch import load_file, save_file

from vlarl.models.openvla.config import _TOWERS, OpenVLAConfig
from vlarl.models.openvla.network import OpenVLA
from vlarl.models.openvla.vision import VisionTransformer

pytestmark = pytest.mark.torch

GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"
SMALL = {"embed_dim": 96, "depth": 4, "num_heads": 3}
SIZES = [224, 84]


def _small_tower(name: str, image_size: int) -> VisionTransformer:
    tower = VisionTransformer(replace(_TOWERS[name], **SMALL, image_size=image_size))
    generator = torch.Generator().manual_seed(3)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return tower


def _pixels(image_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, image_size, image_size, generator=generator)


@pytest.fixture(scope="module")
def timm_answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """timm's features of the small towers, by name and size, and its full-size shapes by name."""
    directory = tmp_path_factory.mktemp("timm")
    for name in _TOWERS:
        full_size = {"timm_id": name, "kwargs": {"img_size": 224}}
        (directory / f"{name.split('.')[0]}.json").write_text(json.dumps(full_size))
        for size in SIZES:
            stem = f"{name.split('.')[0]}-{size}"
            request = {"timm_id": name, "kwargs": SMALL | {"img_size": size}}
            (directory / f"{stem}.json").write_text(json.dumps(request))
            tensors = _small_tower(name, size).state_dict() | {"pixels": _pixels(size)}
            save_file(tensors, directory / f"{stem}.weights.safetensors")
    reference = Path(__file__).with_name("timm_reference.py")
    subprocess.run([sys.executable, reference, directory], check=True, timeout=240)
    answers = directory.glob("*.answer.safetensors")
    return {path.name.split(".")[0]: load_file(path) for path in answers}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_TOWERS))
@pytest.mark.parametrize("size", SIZES)
def test_a_tower_computes_what_timm_computes(
    timm_answers: dict[str, dict[str, torch.Tensor]], name: str, size: int
) -> None:
    """Reached: equal to the last bit."""
    theirs = timm_answers[f"{name.split('.')[0]}-{size}"]["features"]
    with torch.inference_mode():
        ours = _small_tower(name, size)(_pixels(size))
    assert ours.shape == (2, (size // 14) ** 2, 96)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_TOWERS))
def test_full_size_towers_have_timms_parameters(
    timm_answers: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    with torch.device("meta"):
        tower = VisionTransformer(_TOWERS[name])
    theirs = {key: value.tolist() for key, value in timm_answers[name.split(".")[0]].items()}
    assert {key: list(value.shape) for key, value in tower.state_dict().items()} == theirs


def test_the_published_model_has_7_541_237_184_parameters(tmp_path: Path) -> None:
    raw = json.loads((GOLDEN / "config.json").read_text())
    del raw["timm_model_kwargs"]
    raw |= {"text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        model = OpenVLA(OpenVLAConfig.from_directory(tmp_path))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(model.language_model) == 6_738_939_904
    assert count(model.projector) == 71_385_600
    assert count(model.vision_backbone.featurizer) == 303_230_976
    assert count(model.vision_backbone.fused_featurizer) == 427_680_704
    assert count(model) == 7_541_237_184
