"""Stage `probe`: the libraries on their own, in a process of their own.

`python -m benchmarks.gpu_check.probe` prints what it finds as one line of JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.results import Value

_HEAD_SIZES = (32, 64, 128)
_FLASH_BOUND = 0.02


def add_probe(check: Check) -> None:
    """Adds what the process finds.

    Raises:
        RuntimeError: it ended before it said anything.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_check.probe"]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=max(5, check.left)
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"the probe ended with {done.returncode}: {done.stderr[-1500:]}")
    for name, value in json.loads(lines[-1]).items():
        ok = value < _FLASH_BOUND if isinstance(value, float) else None
        check.results.add(f"probe: {name}", value, ok=ok)


def main() -> None:
    """Entry point of the process."""
    found = libraries()
    if torch.cuda.is_available():
        found |= graphics_card()
        for size in _HEAD_SIZES:
            found[f"FlashAttention 3, heads of {size}"] = attempt(flash_attention, size)
        found["cache kernel"] = attempt(cache_kernel)
        found["norm kernel"] = attempt(norm_kernel)
    print(json.dumps(found))


def libraries() -> dict[str, Value]:
    """Versions, and what compiles here."""
    import vllm
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    return {
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
        "vllm": vllm.__version__,
        "platform": type(current_platform).__name__,
        "triton": HAS_TRITON,
        "Python.h": Path(sysconfig.get_paths()["include"], "Python.h").exists(),
        "tools": {name: bool(shutil.which(name)) for name in ("gcc", "g++", "nvcc", "ninja")},
    }


def graphics_card() -> dict[str, Value]:
    """Which one it is, and how much of its memory is free."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "free memory": f"{torch.cuda.mem_get_info()[0] / 2**30:.1f} GiB",
    }


def attempt(measure: Callable[..., float], *arguments: int) -> float | str:
    """What it returns; an error's text where it fails: the next kernel may work."""
    try:
        return measure(*arguments)
    except Exception as error:  # noqa: BLE001 - a kernel that isn't there fails in many ways
        return f"{type(error).__name__}: {error}"[:300]


def flash_attention(head_size: int) -> float:
    """Largest difference of FlashAttention 3's numbers in bfloat16 from float32's."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    torch.manual_seed(0)
    shape = (300, 4, head_size)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
    ends = torch.tensor([0, shape[0]], device="cuda", dtype=torch.int32)
    got = flash_attn_varlen_func(
        *(q, k, v, shape[0], ends, shape[0]),
        cu_seqlens_k=ends,
        causal=True,
        softmax_scale=head_size**-0.5,
        fa_version=3,
    )
    queries, keys, values = (one.float().transpose(0, 1)[None] for one in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return float((got.float() - wanted[0].transpose(0, 1)).abs().max())


def cache_kernel() -> bool:
    """Whether vLLM's operator writes keys to where they belong."""
    import vllm._C_stable_libtorch  # noqa: F401 - registers the operators

    key = torch.randn(40, 4, 64, device="cuda", dtype=torch.bfloat16)
    cache = torch.zeros(4, 16, 4, 64, device="cuda", dtype=torch.bfloat16)
    slots, one = torch.arange(40, device="cuda"), torch.ones((), device="cuda")
    torch.ops._C_cache_ops.reshape_and_cache_flash(
        key, key, cache, cache.clone(), slots, "auto", one, one
    )
    return bool((cache.view(64, 4, 64)[:40] == key).all())


def norm_kernel() -> bool:
    """Whether vLLM's operator gives torch's norm, to bfloat16's precision."""
    import vllm._C_stable_libtorch  # noqa: F401 - registers the operators

    rows = torch.randn(40, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(256, device="cuda", dtype=torch.bfloat16)
    got = torch.empty_like(rows)
    torch.ops._C.rms_norm(got, rows, weight, 1e-6)
    wanted = torch.nn.functional.rms_norm(rows.float(), (256,), eps=1e-6)
    return bool(torch.allclose(got.float(), wanted, atol=0.03))


if __name__ == "__main__":
    main()
