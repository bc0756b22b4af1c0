"""The original model's numbers (tests/golden), computed on a GPU."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from vlarl.models.network import pad_prompts  # noqa: E402
from vlarl.models.openvla.network import generate_actions, load_model  # noqa: E402
from vlarl.models.openvla.pixels import PixelNormalizer  # noqa: E402
from vlarl.models.openvla.vision import TowerPixels  # noqa: E402

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parents[1] / "golden" / "openvla-tiny"
CUDA = torch.device("cuda")


def golden_logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours and the original's [6, 7, 256]."""
    numbers = np.load(GOLDEN / "golden.npz")
    prompts = json.loads((GOLDEN / "golden.json").read_text())["prompt_ids"]
    model = load_model(GOLDEN, dtype, CUDA)
    pixels = torch.from_numpy(PixelNormalizer.from_directory(GOLDEN)(numbers["images"])).to(CUDA)
    ids, lengths = pad_prompts(prompts, model.config.pad_token_id, CUDA)
    tokens = torch.from_numpy(numbers["tokens"]).to(CUDA)
    with torch.inference_mode():
        ours = model(pixels, ids, lengths, tokens).logits.cpu()
    return ours, torch.from_numpy(numbers["logits"])[..., 768:1024]


def test_float32_gives_the_originals_logits() -> None:
    ours, original = golden_logits(torch.float32)
    torch.testing.assert_close(ours, original, atol=1e-4, rtol=0)


def test_bfloat16_gives_the_originals_logits_to_its_precision() -> None:
    """Logits are of size 10, and bfloat16 has 8 bits: steps of 0.06."""
    ours, original = golden_logits(torch.bfloat16)
    torch.testing.assert_close(ours, original, atol=0.3, rtol=0)
    assert (ours - original).abs().mean() < 0.06


@torch.inference_mode()
def test_decoding_with_a_cache_is_the_same_pass() -> None:
    model = load_model(GOLDEN, torch.float32, CUDA)
    numbers = np.load(GOLDEN / "golden.npz")
    pixels = torch.from_numpy(PixelNormalizer.from_directory(GOLDEN)(numbers["images"])).to(CUDA)
    prompts = json.loads((GOLDEN / "golden.json").read_text())["prompt_ids"]
    drawn = torch.Generator(CUDA).manual_seed(5)
    for row, prompt in enumerate(prompts):
        ids, lengths = pad_prompts([prompt], model.config.pad_token_id, CUDA)
        image = pixels[row : row + 1]
        acted = generate_actions(model, image, ids, 1.3, drawn)
        logits = model(image, ids, lengths, acted.token_ids).logits / 1.3
        first = model.config.spec.action_ids.start
        taken = logits.log_softmax(-1).gather(2, (acted.token_ids - first)[..., None])[..., 0]
        torch.testing.assert_close(taken, acted.logprobs, atol=1e-4, rtol=0)


def test_a_gpu_normalises_to_the_same_bits() -> None:
    frames = np.random.default_rng(0).integers(256, size=(3, 28, 28, 3), dtype=np.uint8)
    got = TowerPixels(GOLDEN).to(CUDA)(torch.from_numpy(frames).to(CUDA))
    assert np.array_equal(got.cpu().numpy(), PixelNormalizer.from_directory(GOLDEN)(frames))
