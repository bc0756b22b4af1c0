"""The policy server: observations in, actions out, weights swapped between two actions."""

import os

# vLLM reads these while it is imported: no look-ups on a hub, no usage reports, no chatter.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

# So does numpy. Images are prepared in threads of our own; BLAS threads below them would only fight
# each other and the engine (3.3 times fewer actions a second with 32 clients on 2 cores).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Threads of a parallel loop wait for each other asleep, not spinning: on cores shared with
# simulators a spinning thread keeps away the very thread that it waits for (5 times fewer actions a
# second).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
