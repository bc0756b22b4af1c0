"""A checkpoint small enough to learn on within a test."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny_checkpoint(directory, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    return directory
