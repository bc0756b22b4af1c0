"""What the tests of the whole stack share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import end


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained policy."""
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny_checkpoint(directory, seed=7)
    return directory


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test adds here end with it."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        end(process)
