"""The engine against the original model's own numbers, and what a failed merge leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from prometheus_client import CollectorRegistry  # noqa: E402

from tests.integration.policy.policy_harness import random_adapter  # noqa: E402
from vlarl.config import PolicyConfig  # noqa: E402
from vlarl.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.openvla.prompt import PromptBuilder  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]
GOLDEN = Path(__file__).parents[2] / "golden" / "openvla-tiny"


def test_greedy_tokens_and_logits_are_the_originals() -> None:
    from vllm import LLM, SamplingParams

    from services.policy.engine import engine_args
    from services.policy.processing import engine_input

    numbers = np.load(GOLDEN / "golden.npz")
    instructions = json.loads((GOLDEN / "golden.json").read_text())["instructions"]
    model = OpenVLAConfig.from_directory(GOLDEN)
    config = PolicyConfig(checkpoint=GOLDEN, kv_cache_mib=64, max_batch=8, dtype="float32")
    args = replace(engine_args(config, model), logprobs_mode="raw_logits", max_logprobs=-1)
    engine = LLM.from_engine_args(args).llm_engine
    greedy = SamplingParams(
        temperature=0.0, max_tokens=7, ignore_eos=True, logprobs=-1, detokenize=False
    )
    prompts = PromptBuilder(GOLDEN)
    try:
        for index, instruction in enumerate(instructions):
            prompt = engine_input(
                prompts.token_ids(instruction),
                numbers["images"][index],
                model.pad_token_id,
                model.num_patches,
                str(index),
            )
            engine.add_request(str(index), prompt, greedy)
        finished = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                finished[int(output.request_id.split("-")[0])] = output.outputs[0]
    finally:
        engine.engine_core.shutdown()

    vocabulary = numbers["logits"].shape[-1]
    worst = 0.0
    for index, output in finished.items():
        assert list(output.token_ids) == numbers["tokens"][index].tolist()
        logits = [[step[token].logprob for token in range(vocabulary)] for step in output.logprobs]
        worst = max(worst, float(np.abs(np.array(logits) - numbers["logits"][index]).max()))
    print(f"largest difference of a logit {worst:.2e}")
    assert len(finished) == len(instructions)
    assert worst < 1e-4


async def test_a_merge_that_fails_half_way_is_undone(checkpoint: Path, tmp_path: Path) -> None:
    from services.policy.engine import PolicyEngine
    from services.policy.metrics import PolicyMetrics
    from services.policy.swap import SwapFailedError, WeightSwapper
    from vlarl.openvla.checkpoint import base_digest
    from vlarl.openvla.lora import lora_layers

    model = OpenVLAConfig.from_directory(checkpoint)
    metrics = PolicyMetrics(CollectorRegistry())
    config = PolicyConfig(checkpoint=checkpoint, kv_cache_mib=64, dtype="float32", cpu_threads=1)
    engine = await PolicyEngine.start(config, model, metrics)
    pixels = np.full((56, 56, 3), 100, np.uint8)
    prompt_ids = PromptBuilder(checkpoint).token_ids("turn on the stove")

    async def logprobs() -> list[float]:
        action = await engine.act(prompt_ids, pixels, 1.0, seed=3)
        assert action.policy_version == swapper.serving.version
        return action.logprobs

    try:
        swapper = WeightSwapper(engine, lora_layers(model), base_digest(checkpoint), metrics)
        base = await logprobs()
        good = random_adapter(checkpoint, 1)
        await swapper.swap(good, b"1")
        first = await logprobs()
        assert first != base

        # A layer in the middle that W0 doesn't fit makes the merge stop after half of the layers
        # have been replaced; the receiver would never let this one in.
        layers = list(good.factors)
        poisoned = random_adapter(checkpoint, 2)
        a, b = poisoned.factors[layers[len(layers) // 2]]
        broken = {**poisoned.factors, layers[len(layers) // 2]: (a, torch.full_like(b, 1.0)[:-1])}
        with pytest.raises(SwapFailedError):
            await swapper.swap(replace(poisoned, factors=broken), b"2")
        assert swapper.serving.version == 1
        assert await logprobs() == first
        await swapper.swap(random_adapter(checkpoint, 2), b"2")
        assert await logprobs() != first
    finally:
        engine.shutdown()
