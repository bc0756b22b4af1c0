"""Checkpoints survive crashes and tell what is wrong with a broken one."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from vlarl.learning.checkpoints import ResumeError  # noqa: E402
from vlarl.weights.checkpoint import NotFiniteError  # noqa: E402
from vlarl_trainer.record.progress import (  # noqa: E402
    Progress,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.torch

PROGRESS = Progress(
    run_id="run",
    base_digest="abc",
    iteration=3,
    version=2,
    env_steps=400,
    learned=["run:00002:0000"],
    success={"0": [True, False]},
    metrics={"entropy": 0.1 + 0.2},
)
TENSORS = {"policy.layer.A": torch.arange(6.0).reshape(2, 3), "policy_steps": torch.tensor(12)}


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, PROGRESS, TENSORS, keep=2)
    progress, tensors = load_checkpoint(path)
    assert progress == PROGRESS
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}, "no pickle"


def test_half_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, PROGRESS, TENSORS, keep=2)
    crashed = tmp_path / ".iteration-00004.partial"
    crashed.mkdir()
    (crashed / "state.json").write_text("{")
    assert latest_checkpoint(tmp_path) == path
    following = save_checkpoint(tmp_path, replace(PROGRESS, iteration=4), TENSORS, keep=2)
    assert latest_checkpoint(tmp_path) == following
    assert not crashed.exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 100):
        save_checkpoint(tmp_path, replace(PROGRESS, iteration=iteration), TENSORS, keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["iteration-00003", "iteration-00100"]


def test_an_iteration_done_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, PROGRESS, TENSORS, keep=2)
    path = save_checkpoint(tmp_path, replace(PROGRESS, env_steps=500), TENSORS, keep=2)
    assert load_checkpoint(path)[0].env_steps == 500


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, PROGRESS, TENSORS, keep=2)
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(ResumeError, match=str(path)):
        load_checkpoint(path)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["tensors", "state"])
def test_what_is_not_finite_is_never_written(tmp_path: Path, number: float, place: str) -> None:
    path = save_checkpoint(tmp_path, PROGRESS, TENSORS, keep=1)
    progress, tensors = replace(PROGRESS, iteration=4), dict(TENSORS)
    if place == "tensors":
        tensors["critic.0.weight"] = torch.tensor([1.0, number, number])
    else:
        progress = replace(progress, metrics={"value_loss": number})
    with pytest.raises(NotFiniteError, match=r"not finite .*lower the learning rate") as told:
        save_checkpoint(tmp_path, progress, tensors, keep=1)
    if place == "tensors":
        assert "critic.0.weight has numbers that are not finite (2 of 3)" in str(told.value)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(path)[0] == PROGRESS


def test_one_that_an_older_version_wrote_with_a_nan_is_not_gone_on_from(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, PROGRESS, TENSORS, keep=2)
    spoiled = TENSORS | {"policy.layer.A": torch.tensor([1.0, float("nan")])}
    save_file(spoiled, path / "tensors.safetensors")
    with pytest.raises(ResumeError, match=rf"{path}: policy\.layer\.A has .*remove the folder"):
        load_checkpoint(path)
