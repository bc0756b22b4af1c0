"""vLLM's entry into this package: the `vllm.general_plugins` entry point calls `register`.

vLLM calls it in every process that it starts, so the engine's own process knows the model too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess


def register() -> None:
    """Puts our OpenVLA in the place of vLLM's, which is hard-wired to full-size towers."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(
        "OpenVLAForActionPrediction", "services.policy.model:OpenVLAForActionPrediction"
    )
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    # vLLM's engine would outlive a server that was killed, with all its memory.
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
