"""How the C library's allocator treats memory that is freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30
_OWN_PAGES_BYTES = 32 << 20  # The largest that glibc takes.


def keep_freed_memory() -> None:
    """Keeps up to 1 GiB of freed memory for the next tensors and messages of up to 32 MiB.

    A pass on a CPU frees its activations and asks for the same again. By default glibc returns
    them to the kernel, which hands the pages out anew, zeroed, one fault each: a fifth of a tiny
    model's pass, and half of the time in which a trainer receives its trajectories
    (docs/benchmarks.md). Larger tensors, weights of a real model say, still come from
    and go to the kernel. Does nothing where the C library isn't glibc.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
