"""What the engine's process is started with."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")

from vlarl.config import ConfigError, PolicyConfig, load_config
from vlarl_policy.vllm_engine import set_engine_environment

pytestmark = pytest.mark.torch

TF32 = {
    "TRITON_F32_DEFAULT": "tf32",
    "NVIDIA_TF32_OVERRIDE": "1",
    "VLLM_FLOAT32_MATMUL_PRECISION": "medium",
}


@pytest.fixture(autouse=True)
def callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that wants the opposite; what a test sets goes with it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.update({"VLLM_WORKER_MULTIPROC_METHOD": "fork", **TF32})
    for name in ("OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE"):
        os.environ.pop(name, None)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_engine_is_spawned_whatever_the_caller_wants(on_gpu: bool) -> None:
    set_engine_environment(PolicyConfig(), on_gpu=on_gpu)
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ.get("TORCHDYNAMO_DISABLE") == (None if on_gpu else "1")


def test_float32_is_exact_where_that_is_chosen_and_the_callers_choice_elsewhere() -> None:
    set_engine_environment(PolicyConfig(dtype="float32"), on_gpu=True)
    assert TF32.items() <= os.environ.items()
    set_engine_environment(PolicyConfig(dtype="float32", exact_float32=True), on_gpu=True)
    found = {name: os.environ[name] for name in TF32}
    assert found == {
        "TRITON_F32_DEFAULT": "ieee",
        "NVIDIA_TF32_OVERRIDE": "0",
        "VLLM_FLOAT32_MATMUL_PRECISION": "highest",
    }


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_exactness_of_anything_but_float32_is_refused(dtype: str) -> None:
    chosen = [f"policy.dtype={dtype}", "policy.exact_float32=true"]
    with pytest.raises(ConfigError, match='exact_float32 needs dtype = "float32"'):
        load_config(None, chosen)
