"""How vLLM runs OpenVLA-OFT: one chunk is one pooling request, whose answer comes from one pass."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar

from vllm import PoolingParams, PoolingRequestOutput
from vllm.inputs.engine import MultiModalInput

from vlarl.config import PolicyConfig
from vlarl.models.base import Serving
from vlarl.models.openvla.limits import most_tokens_of_a_pass
from vlarl.models.openvla.oft import FAMILY_FILE
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.vllm_inputs import chunk_input
from vlarl.models.openvla_oft.vllm_pooler import TASK
from vlarl.models.serving import Encoded, SampledAction
from vlarl.models.statistics import STATISTICS

_CAPTURED_TOKENS = range(64, 1025, 64)
"""Passes for which a GPU keeps graphs: up to some chunks. In larger ones launches cost little."""


class ChunkServing(Serving):
    """What the engine is told, given and asked for."""

    runner: ClassVar = "pooling"
    settings: ClassVar = ("config.json", "preprocessor_config.json", STATISTICS, FAMILY_FILE)
    """Names of the files that the engine's model is made from, beside the weights."""

    def __init__(self, model: OFTConfig) -> None:
        self._model = model

    def engine_args(self, config: PolicyConfig, itemsize: int) -> dict[str, Any]:  # noqa: ARG002
        """The arguments of vLLM's engine that depend on the network, by name.

        There is no key-value cache: nothing is read twice.

        Args:
            config: how many requests run at once.
            itemsize: bytes of a number.
        """
        longest = self._model.longest_sequence
        return {
            "runner": "pooling",
            "hf_overrides": {
                "architectures": ["OpenVLAOFTForActionPrediction"],
                "text_config": {"is_causal": False},
            },
            "max_model_len": longest,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": most_tokens_of_a_pass(config, longest),
            "limit_mm_per_prompt": {"image": 1},
            "cudagraph_capture_sizes": list(_CAPTURED_TOKENS),
        }

    def prompt(self, encoded: Encoded, name: str) -> MultiModalInput:
        """One observation as vLLM takes it; name: see `chunk_input`."""
        return chunk_input(self._model, encoded.prompt_ids, encoded.pixels, encoded.proprio, name)

    def parameters(self, temperature: float, seed: int | None) -> PoolingParams:
        """How one chunk is sampled.

        Args:
            temperature: 0 takes the most probable tokens, else at least 0.01.
            seed: makes the sampling repeatable; none: one that nobody knows.
        """
        chosen = secrets.randbits(64) if seed is None else seed
        return PoolingParams(task=TASK, extra_kwargs={"temperature": temperature, "seed": chosen})

    def sampled(self, output: PoolingRequestOutput) -> SampledAction:
        """The chunk in a finished request's output."""
        version, *rest = output.outputs.data.tolist()
        tokens = self._model.spec.tokens
        first = self._model.spec.action_ids.start
        return SampledAction(
            token_ids=[first + int(one) for one in rest[:tokens]],
            logprobs=rest[tokens:],
            policy_version=int(version),
        )
