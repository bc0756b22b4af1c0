"""How vLLM runs OpenVLA: one action is one request of as many tokens as it has dimensions, sampled
among the action ids alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vllm import RequestOutput, SamplingParams
from vllm.inputs.engine import MultiModalInput
from vllm.sampling_params import RequestOutputKind

from vlarl.config import PolicyConfig
from vlarl.models.base import Serving
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import (
    kv_cache_bytes,
    longest_sequence,
    max_batched_tokens,
)
from vlarl.models.openvla.vllm_inputs import engine_input
from vlarl.models.serving import Encoded, SampledAction
from vlarl.models.statistics import STATISTICS


class TokenServing(Serving):
    """What the engine is told, given and asked for."""

    runner: ClassVar = "generate"
    settings: ClassVar = ("config.json", "preprocessor_config.json", STATISTICS)
    """Names of the files that the engine's model is made from, beside the weights."""

    def __init__(self, model: OpenVLAConfig) -> None:
        self._model = model
        self._action_ids = list(model.spec.action_ids)

    def engine_args(self, config: PolicyConfig, itemsize: int) -> dict[str, Any]:
        """The arguments of vLLM's engine that depend on the network, by name.

        Args:
            config: how many requests run at once, and how large the cache is if that is set.
            itemsize: bytes of a number.
        """
        return {
            "max_model_len": longest_sequence(self._model),
            "kv_cache_memory_bytes": kv_cache_bytes(config, self._model, itemsize),
            # A request's own seed together with chunked prefill kills the engine on a CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max_batched_tokens(config, self._model),
            "limit_mm_per_prompt": {"image": 1},
            # The default, raw_logprobs, is taken before temperature and allowed ids.
            "logprobs_mode": "processed_logprobs",
        }

    def prompt(self, encoded: Encoded, name: str) -> MultiModalInput:
        """One observation as vLLM takes it.

        Args:
            encoded: the observation.
            name: of its image in the engine's encoder cache; see `engine_input`.
        """
        return engine_input(
            encoded.prompt_ids,
            encoded.pixels,
            self._model.pad_token_id,
            self._model.num_patches,
            name,
        )

    def parameters(self, temperature: float, seed: int | None) -> SamplingParams:
        """How one action is sampled.

        Args:
            temperature: 0 takes the most probable token, else at least 0.01.
            seed: makes the sampling repeatable; none: the engine's own stream.
        """
        return SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=self._model.spec.action_dim,
            ignore_eos=True,
            allowed_token_ids=self._action_ids,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # A deep copy of the 256 ids took a tenth of the server's time.
            skip_clone=True,
        )

    def sampled(self, output: RequestOutput) -> SampledAction:
        """The action in a finished request's output."""
        (completion,) = output.outputs
        token_ids = list(completion.token_ids)
        (span,) = completion.weight_versions
        return SampledAction(
            token_ids=token_ids,
            logprobs=[
                position[token_id].logprob
                for token_id, position in zip(token_ids, completion.logprobs, strict=True)
            ],
            policy_version=int(span.version),
        )
