"""vLLM's entry into this package: the `vllm.general_plugins` entry point calls `register`.

vLLM calls it once in every process, so the engine's own process knows the model too. A forked one
would not be called: it takes over that its server was.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess

from vlarl.models.registry import ENGINE_MODELS
from vlarl.parent_death import end_with_parent


def register() -> None:
    """Puts our policies in the place of vLLM's: its OpenVLA is hard-wired to full-size towers."""
    from vllm import ModelRegistry

    for architecture, model in ENGINE_MODELS.items():
        ModelRegistry.register_model(architecture, model)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # An engine would outlive a server that was killed, with all its memory. The kernel ends
        # one that hangs, too; the thread one whose server was gone before the kernel was asked.
        end_with_parent(signal.SIGKILL)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        atexit.register(gc.freeze)  # as the command does: the memory goes with the process


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
