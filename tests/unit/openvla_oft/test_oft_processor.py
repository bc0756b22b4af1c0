"""Several frames, proprioception and chunks, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="runs in the torch environment (.venv)")

from tests.unit.openvla_oft.oft_golden import CAMERAS, GOLDEN, write_settings
from vlarl.errors import ConfigError
from vlarl.images import ImageError, encode_jpeg
from vlarl.models.openvla.processor import normalized_proprio
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.processor import ChunkProcessor
from vlarl.models.serving import Observation, ObservationError
from vlarl.models.statistics import ActionStats

pytestmark = pytest.mark.torch
KEY = "libero_spatial_no_noops"
NUMBERS = np.load(GOLDEN / "golden.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ChunkProcessor:
    directory = write_settings(tmp_path_factory.mktemp("oft"), cameras=CAMERAS, proprio=8)
    return ChunkProcessor(directory, OFTConfig.from_directory(directory), center_crop=False)


def _image(seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    return encode_jpeg(generator.integers(256, size=(64, 64, 3), dtype=np.uint8))


def test_an_observation_is_encoded_in_the_cameras_order(processor: ChunkProcessor) -> None:
    images = [_image(0), _image(1)]
    state = NUMBERS["proprio"][0]
    encoded = processor.encode(Observation(images, "go", state, KEY))
    assert encoded.pixels.shape == (2, 224, 224, 3)
    for pixels, image in zip(encoded.pixels, images, strict=True):
        np.testing.assert_array_equal(pixels, processor.frame(image))
    assert encoded.prompt_ids == processor.prompt("go")
    assert encoded.proprio is not None
    np.testing.assert_allclose(encoded.proprio, NUMBERS["proprio_normalized"][0], atol=1e-12)
    cropped = processor.encode(Observation(images, "go", state, KEY, center_crop=True))
    assert (cropped.pixels != encoded.pixels).any()


def test_a_batch_has_six_channels_an_image(processor: ChunkProcessor) -> None:
    import torch

    frames = np.stack([NUMBERS["images"][:3], NUMBERS["wrist_images"][:3]], axis=1)
    batch = processor.batch(frames, [[1, 284]] * 3, torch.device("cpu"), np.ones((3, 8)))
    assert batch.pixel_values.shape == (3, 12, 224, 224)
    for image in range(2):
        alone = processor.pixels(torch.from_numpy(frames[:, image]))
        assert torch.equal(batch.pixel_values[:, 6 * image : 6 * image + 6], alone)
    assert batch.proprio is not None
    assert batch.proprio.dtype == torch.float32


def test_proprioception_is_the_originals(processor: ChunkProcessor) -> None:
    ours = processor.proprioception(NUMBERS["proprio"], "libero_spatial")
    np.testing.assert_allclose(ours, NUMBERS["proprio_normalized"], atol=1e-12, rtol=0)
    assert (np.abs(ours) == 1).any()
    np.testing.assert_array_equal(processor.proprioception(NUMBERS["proprio"][0]), ours[0])


def test_a_constant_or_masked_out_dimension_follows_the_formula() -> None:
    """By hand: 2 * 0 / 1e-8 - 1; 2 * 1e-8 / 1e-8 - 1, which is 1; outside the mask, a clip."""
    table = {"q01": [3, 3, 0, 0], "q99": [3, 3, 4, 4], "mask": [True, True, False, True]}
    statistics = ActionStats.from_json(table)
    ours = normalized_proprio(np.array([3, 3 + 1e-8, 7, 1]), statistics)
    np.testing.assert_allclose(ours, [-1, 1, 1, -0.5], atol=1e-6)


def test_chunks_are_steps_of_tokens_one_after_the_other(processor: ChunkProcessor) -> None:
    statistics = processor.spec.statistics(KEY)
    ids = np.arange(800, 856)
    actions = processor.actions(ids, statistics)
    assert actions.shape == (8, 7)
    np.testing.assert_array_equal(processor.tokens(actions, statistics), ids)
    # Token 7s + d: of step 2, dimension 6, which the mask leaves out.
    assert actions[2, 6] == processor.action_tokenizer.decode([800 + 20])[0]
    # 0.5 * (x + 1) * (width + 1e-8) + q01, of dimension 0.
    value, low = processor.action_tokenizer.decode([800])[0], statistics.q01[0]
    width = statistics.q99[0] - low
    assert actions[0, 0] == 0.5 * (value + 1) * (width + 1e-8) + low
    assert actions[0, 0] != 0.5 * (value + 1) * width + low


def test_what_is_no_observation_or_chunk_is_refused(processor: ChunkProcessor) -> None:
    statistics = processor.spec.statistics(KEY)
    state = [0.0] * 8
    with pytest.raises(ObservationError, match=r"sees 2 \(agentview, robot0_eye_in_hand\), not 1"):
        processor.encode(Observation([_image(0)], "go", state))
    with pytest.raises(ImageError):
        processor.encode(Observation([b"no image"] * 2, "go", state))
    with pytest.raises(ObservationError, match=r"shape \[0\], the policy reads 8 numbers"):
        processor.encode(Observation([_image(0)] * 2, "go"))
    with pytest.raises(ObservationError, match=r"shape \[7\], the policy reads 8 numbers"):
        processor.proprioception(np.zeros(7))
    with pytest.raises(ObservationError, match="aren't finite"):
        processor.proprioception([np.nan] * 8)
    with pytest.raises(ConfigError, match="no dataset statistics named 'bridge_orig'"):
        processor.proprioception(np.zeros(8), "bridge_orig")
    with pytest.raises(ValueError, match=r"a chunk has 56 ids, not \[7\]"):
        processor.actions([800] * 7, statistics)
    with pytest.raises(ValueError, match=r"a chunk has shape \[8, 7\], not \[5, 7\]"):
        processor.tokens(np.zeros((5, 7)), statistics)
    with pytest.raises(ValueError, match=r"action ids lie in \[768, 1023\]"):
        processor.actions([5] * 56, statistics)


def test_a_policy_without_proprioception_says_so(tmp_path: Path) -> None:
    config = OFTConfig.from_directory(write_settings(tmp_path))
    with pytest.raises(ObservationError, match="reads no proprioception"):
        ChunkProcessor(tmp_path, config, center_crop=False).proprioception(np.zeros(8))


def test_a_processor_needs_no_torch(tmp_path: Path) -> None:
    write_settings(tmp_path)
    program = (
        "import sys; from pathlib import Path; "
        "from vlarl.models.openvla_oft.config import OFTConfig; "
        "from vlarl.models.openvla_oft.processor import ChunkProcessor; "
        f"path = Path({str(tmp_path)!r}); "
        "ChunkProcessor(path, OFTConfig.from_directory(path), True); "
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
