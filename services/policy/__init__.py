"""The policy server: observations in, actions out, weights swapped between two actions."""

import os

# vLLM reads these while it is imported: no look-ups on a hub, no usage reports, no chatter.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
