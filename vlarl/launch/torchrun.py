"""Several processes of one program on this machine, by torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

_RANK_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
}


def ranks_command(ranks: int) -> list[str]:
    """The interpreter, and with more than one rank torchrun's arguments: a program follows."""
    if ranks == 1:
        return [sys.executable]
    # Every rank writes to this process's output. torchrun would leave a folder of empty logs
    # among the system's temporary files at each start.
    logs = f"--log-dir={os.devnull}"
    launcher = ["-m", "torch.distributed.run", "--standalone", logs]
    return [sys.executable, *launcher, f"--nproc-per-node={ranks}"]


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what torchrun tells a rank: for a program that is to be none."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _RANK_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
