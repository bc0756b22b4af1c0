"""The engine's longest request, its largest pass, and what its key-value cache takes.

Needs neither torch nor vLLM.
"""

from __future__ import annotations

import math

from vlarl.config import PolicyConfig
from vlarl.models.openvla.config import OpenVLAConfig, TextConfig

MAX_PROMPT_TOKENS = 240
"""Most tokens of an instruction's whole prompt, image tokens aside."""
MOST_BATCHED_TOKENS = 8192
"""Most tokens in one pass, however large a batch may be."""


def longest_sequence(model: OpenVLAConfig) -> int:
    """Tokens of a request with the longest prompt."""
    return model.num_patches + MAX_PROMPT_TOKENS + model.spec.action_dim


def max_batched_tokens(config: PolicyConfig, model: OpenVLAConfig) -> int:
    """`most_tokens_of_a_pass` of OpenVLA."""
    return most_tokens_of_a_pass(config, longest_sequence(model))


def most_tokens_of_a_pass(config: PolicyConfig, longest: int) -> int:
    """Most tokens in one pass: of `max_batch` of the longest requests, if they aren't too many.

    When it starts, the engine computes so many to see what memory a pass takes. On a CPU 8,192
    tokens of a 7B model take longer than eight minutes.

    Args:
        config: how many requests run at once.
        longest: tokens of the longest request.
    """
    # The engine also counts each of its requests as a token.
    return max(longest, min(config.max_batch * longest, MOST_BATCHED_TOKENS), config.max_batch)


def token_bytes(text: TextConfig, itemsize: int) -> int:
    """Keys and values of one token in all layers."""
    head_dim = text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * itemsize


def kv_cache_bytes(config: PolicyConfig, model: OpenVLAConfig, itemsize: int) -> int:
    """As configured, else what `max_batch` of the longest requests take.

    itemsize: bytes of a number.
    """
    if config.kv_cache_mib is not None:
        return config.kv_cache_mib << 20
    # Requests take whole blocks, of 128 tokens on a CPU.
    tokens = math.ceil(longest_sequence(model) / 128 + 1) * 128 * config.max_batch
    return max(token_bytes(model.text, itemsize) * tokens, 64 << 20)
