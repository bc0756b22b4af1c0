from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

import torch

from vlarl.weights.checkpoint import (
    CheckpointReader,
    base_digest,
    save_tensors,
    tensor_bytes,
    tensors_digest,
)
from vlarl.weights.folder import CheckpointError

pytestmark = pytest.mark.torch

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor(2.0),
}


def test_what_is_saved_can_be_read(tmp_path: Path) -> None:
    save_tensors(tmp_path, TENSORS.items())
    reader = CheckpointReader(tmp_path)
    assert list(reader) == ["a", "b", "c"]
    assert "b" in reader
    assert "d" not in reader
    assert reader.shape("b") == (2, 3)
    for key, tensor in TENSORS.items():
        assert torch.equal(reader.tensor(key), tensor)
        assert reader.tensor(key).dtype == tensor.dtype
    with pytest.raises(CheckpointError, match="'d'"):
        reader.tensor("d")


def test_the_digest_is_of_the_tensors_not_of_the_files(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one", TENSORS.items())
    save_tensors(tmp_path / "shards", TENSORS.items(), shard_bytes=1)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 3
    assert base_digest(tmp_path / "one") == base_digest(tmp_path / "shards")
    changed = TENSORS | {"b": TENSORS["b"] + 1e-6}
    save_tensors(tmp_path / "changed", changed.items())
    assert base_digest(tmp_path / "changed") != base_digest(tmp_path / "one")


def test_the_digest_follows_the_files(tmp_path: Path) -> None:
    save_tensors(tmp_path, TENSORS.items())
    before = base_digest(tmp_path)
    assert base_digest(tmp_path) == before
    save_tensors(tmp_path, (TENSORS | {"e": torch.zeros(9)}).items())
    assert base_digest(tmp_path) != before


def test_a_digest_by_hand() -> None:
    expected = hashlib.sha256(b"b torch.float32 [2, 3]\n" + TENSORS["b"].numpy().tobytes())
    assert tensors_digest([("b", TENSORS["b"])]) == expected.hexdigest()
    assert tensors_digest([("b", TENSORS["b"].t().contiguous().t())]) == expected.hexdigest()


def test_bytes_are_in_c_order() -> None:
    assert bytes(tensor_bytes(TENSORS["b"].t())) == TENSORS["b"].numpy().T.tobytes("C")
    assert len(tensor_bytes(TENSORS["a"])) == 8


def test_saving_again_replaces_the_other_layout(tmp_path: Path) -> None:
    save_tensors(tmp_path, TENSORS.items(), shard_bytes=1)
    save_tensors(tmp_path, [("z", torch.zeros(1))])
    assert list(CheckpointReader(tmp_path)) == ["z"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    save_tensors(tmp_path, TENSORS.items(), shard_bytes=1)
    assert list(CheckpointReader(tmp_path)) == ["a", "b", "c"]


def test_a_save_cut_short_is_no_checkpoint(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield from TENSORS.items()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_tensors(tmp_path, failing(), shard_bytes=1)
    with pytest.raises(CheckpointError, match="neither"):
        CheckpointReader(tmp_path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        CheckpointReader(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        CheckpointReader(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in ("{", "[]", json.dumps({"weight_map": {"a": "absent.safetensors"}})):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=r"index\.json|absent"):
            CheckpointReader(tmp_path)


def test_an_index_cannot_lead_out_of_the_checkpoint(tmp_path: Path) -> None:
    save_tensors(tmp_path / "outside", TENSORS.items())
    inside = tmp_path / "inside"
    inside.mkdir()
    weight_map = {"weight_map": {"a": "../outside/model.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    with pytest.raises(CheckpointError):
        CheckpointReader(inside)


def test_weights_can_be_read_by_other_users(tmp_path: Path) -> None:
    """A policy server in a container isn't the user who made its checkpoint."""
    (tmp_path / "plain").touch()
    save_tensors(tmp_path / "made", iter([("a", torch.zeros(3))]))
    assert (tmp_path / "made/model.safetensors").stat().st_mode == (
        tmp_path / "plain"
    ).stat().st_mode
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["model.safetensors"]
