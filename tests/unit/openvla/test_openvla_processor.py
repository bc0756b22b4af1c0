"""A checkpoint's processor, as the registry finds it, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="runs in the torch environment (.venv)")

from vlarl.images import ImageError, encode_jpeg
from vlarl.models.openvla.limits import MAX_PROMPT_TOKENS
from vlarl.models.openvla.processor import Processor
from vlarl.models.registry import lora_layers, policy_family, policy_spec
from vlarl.models.serving import Observation, ObservationError

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"
KEY = "libero_spatial"


@pytest.fixture(scope="module")
def processor() -> Processor:
    return policy_family(GOLDEN).processor(center_crop=False)


def test_prompts_and_actions_are_the_originals(processor: Processor) -> None:
    numbers = np.load(GOLDEN / "golden.npz")
    text = json.loads((GOLDEN / "golden.json").read_text())
    for instruction, prompt_ids in zip(text["instructions"], text["prompt_ids"], strict=True):
        assert processor.prompt(instruction) == prompt_ids
    actions = processor.actions(numbers["tokens"], processor.spec.statistics(KEY))
    np.testing.assert_array_equal(actions, numbers["actions"])


def test_tokens_stand_for_their_actions(processor: Processor) -> None:
    statistics = processor.spec.statistics(KEY)
    ids = np.array(processor.spec.action_ids)[1:]  # The two lowest stand for one value.
    actions = processor.actions(np.repeat(ids[:, None], 7, axis=1), statistics)
    narrow = statistics.min == statistics.max
    tokens = processor.tokens(actions, statistics)[:, ~narrow]
    np.testing.assert_array_equal(tokens, np.repeat(ids[:, None], tokens.shape[1], axis=1))


def test_an_observation_is_what_frame_and_prompt_say(processor: Processor) -> None:
    size = processor.spec.image_size
    image = encode_jpeg(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
    encoded = processor.encode(Observation([image], "turn on the stove"))
    assert encoded.pixels.shape == (size, size, 3)
    np.testing.assert_array_equal(encoded.pixels, processor.frame(image))
    assert encoded.prompt_ids == processor.prompt("turn on the stove")
    cropped = processor.encode(Observation([image], "turn on the stove", center_crop=True))
    assert (cropped.pixels != encoded.pixels).any()


def test_what_is_no_observation_is_refused(processor: Processor) -> None:
    image = encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ImageError):
        processor.encode(Observation([b"no image"], "go"))
    with pytest.raises(ObservationError, match=f"prompt tokens, more than {MAX_PROMPT_TOKENS}"):
        processor.encode(Observation([image], "stove " * 300))
    with pytest.raises(ObservationError, match=r"the policy sees 1 \(agentview\), not 2"):
        processor.encode(Observation([image, image], "go"))


def test_a_prompt_is_the_callers_own(processor: Processor) -> None:
    processor.prompt("go").clear()
    assert processor.prompt("go")


def test_a_description_and_a_processor_need_no_torch() -> None:
    assert policy_spec(GOLDEN).action_ids == range(768, 1024)
    assert len(lora_layers(GOLDEN)) > 10
    program = (
        "import sys; from vlarl.models.registry import policy_family; "
        f"policy_family({str(GOLDEN)!r}).processor(True); "
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
