"""`vlarl` with a vLLM that leaves the start method of its processes alone, as it does on CUDA.

On a CPU it sets it itself.
"""

import os

from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform

from vlarl_cli import main

VARIABLE = "VLLM_WORKER_MULTIPROC_METHOD"
usual = CpuPlatform.check_and_update_config.__func__


def leaving_the_start_method(cls: type[CpuPlatform], vllm_config: VllmConfig) -> None:
    before = os.environ.pop(VARIABLE, None)
    usual(cls, vllm_config)
    del os.environ[VARIABLE]
    if before is not None:
        os.environ[VARIABLE] = before


CpuPlatform.check_and_update_config = classmethod(leaving_the_start_method)

if __name__ == "__main__":
    main()
