"""Logging of every process: one line an event, to standard error."""

from __future__ import annotations

import logging
import sys


def configure_logging(verbose: bool = False) -> None:
    """Sets up the root logger: time, level, module, message."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    for noisy in ("asyncio", "httpx", "PIL", "fsspec", "numba", "wandb"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
