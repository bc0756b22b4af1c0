"""`vlarl` with vLLM's engine told something else: to find out what doesn't work.

python -m benchmarks.gpu_check.told '{"enforce_eager": true}' serve policy --checkpoint ...
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace


def main() -> None:
    """Entry point: the changed arguments of the engine as JSON, then the command's."""
    from vllm import AsyncEngineArgs

    from vlarl.config import PolicyConfig
    from vlarl.models.base import Serving
    from vlarl_cli import main as command_line
    from vlarl_policy import vllm_engine as engine

    changes = json.loads(sys.argv.pop(1))
    usual = engine.engine_args

    def told(config: PolicyConfig, serving: Serving) -> AsyncEngineArgs:
        return replace(usual(config, serving), **changes)

    engine.engine_args = told
    command_line()


if __name__ == "__main__":
    main()
