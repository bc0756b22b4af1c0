"""Tests of what differs on a GPU: `.venv/bin/python -m pytest -m gpu`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.learning.ranks import Ranks  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU there is nothing to test."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not the keyword, which a case named gpu has, too
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(scope="session")
def on_gpu() -> Iterator[Ranks]:
    """The ranks of a single process with a GPU, over nccl."""
    ranks = Ranks.from_environment()
    assert ranks.device.type == "cuda"
    assert ranks.mesh is not None
    yield ranks
    ranks.leave()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small enough to learn on within a test."""
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny_checkpoint(directory, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    return directory
