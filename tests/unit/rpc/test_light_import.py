"""`import vlarl` and the client side load nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "vllm",
    "transformers",
    "mujoco",
    "robosuite",
    "libero",
    "tensorboard",
    "matplotlib",
    "jinja2",
    "cv2",
)
CLIENT = (
    "vlarl",
    "vlarl.config",
    "vlarl.clients.policy",
    "vlarl.clients.env",
    "vlarl.queue.rollout_queue",
    "vlarl.rpc.server",
    "vlarl_cli",
    "vlarl_jobs.ablation.series",
)


def _modules_after(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", CLIENT)
def test_no_heavy_module_is_imported(module: str) -> None:
    assert not _modules_after(f"import {module}").intersection(HEAVY)


def test_importing_the_package_alone_does_not_even_load_grpc() -> None:
    assert not _modules_after("import vlarl").intersection({"grpc", "numpy", "pydantic", "PIL"})


def test_exports_are_found_lazily() -> None:
    loaded = _modules_after(
        "from vlarl import Action, AsyncPolicyClient, PolicyClient, PolicyError"
    )
    assert "vlarl.clients.policy" in loaded
    assert "vlarl.clients.env" in _modules_after("from vlarl import EnvClient, EnvError")
    assert "vlarl.clients.chunks" in _modules_after("from vlarl import ChunkedPolicy, Observation")
    assert _modules_after("import vlarl; assert vlarl.__version__[0].isdigit()")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import vlarl

    with pytest.raises(AttributeError, match="no attribute 'PolicyServer'"):
        vlarl.PolicyServer  # noqa: B018
