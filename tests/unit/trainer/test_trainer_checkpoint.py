"""Checkpoints survive crashes and tell what is wrong with a broken one."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from vlarl.files import durable_folder  # noqa: E402
from vlarl.learning.checkpoints import CheckpointFolder, ResumeError  # noqa: E402
from vlarl.weights.checkpoint import NotFiniteError  # noqa: E402
from vlarl_trainer.record.progress import Progress  # noqa: E402

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


def folder_of(directory: Path) -> CheckpointFolder[Progress]:
    return CheckpointFolder(directory, "iteration-", 5, Progress)


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    progress, tensors = folder_of(tmp_path).load(path)
    assert progress == PROGRESS
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}, "no pickle"


def test_half_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    crashed = tmp_path / ".iteration-00004.partial"
    crashed.mkdir()
    (crashed / "state.json").write_text("{")
    assert folder_of(tmp_path).latest() == path
    following = folder_of(tmp_path).save(4, replace(PROGRESS, iteration=4), TENSORS, keep=2)
    assert folder_of(tmp_path).latest() == following
    assert not crashed.exists()


def test_what_another_process_is_writing_beside_it_stays(tmp_path: Path) -> None:
    """Who adopts a checkpoint into a folder that others use owns nothing but its name."""
    theirs, mine = tmp_path / ".theirs.partial", tmp_path / ".mine.partial"
    for folder in (theirs, mine):
        folder.mkdir()
        (folder / "half").touch()
    with durable_folder(tmp_path / "mine") as folder:
        (folder / "whole").touch()
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["whole"]
    assert (theirs / "half").exists()
    assert not mine.exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 100):
        folder_of(tmp_path).save(iteration, replace(PROGRESS, iteration=iteration), TENSORS, keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["iteration-00003", "iteration-00100"]


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=1)
    shutil.copytree(path, tmp_path / "iteration-00009-mine")
    assert folder_of(tmp_path).latest() == path
    shutil.copytree(path, tmp_path / "iteration-9")
    assert folder_of(tmp_path).latest() == path
    following = folder_of(tmp_path).save(100_000, PROGRESS, TENSORS, keep=1)
    assert folder_of(tmp_path).latest() == following, "the newest by number, not by name"
    assert (tmp_path / "iteration-00009-mine").is_dir()


def test_one_that_was_being_replaced_when_the_trainer_was_killed_is_there_again(
    tmp_path: Path,
) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    path.rename(tmp_path / ".iteration-00003.replaced.partial")
    folder_of(tmp_path).save(4, replace(PROGRESS, iteration=4), TENSORS, keep=2)
    assert folder_of(tmp_path).load(path)[0] == PROGRESS
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_goes_on_first_undoes_what_a_crash_cut_short(tmp_path: Path) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    path.rename(tmp_path / ".iteration-00003.replaced.partial")
    (tmp_path / ".iteration-00003.partial").mkdir()
    assert folder_of(tmp_path).latest() is None
    folder_of(tmp_path).recover()
    assert folder_of(tmp_path).latest() == path
    assert folder_of(tmp_path).state(path) == PROGRESS
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        best = 1 if iteration < 4 else 3
        folder_of(tmp_path).save(iteration, PROGRESS, TENSORS, keep=1, best=best)
        kept = sorted(int(path.name[-5:]) for path in tmp_path.iterdir())
        assert kept == sorted({best, iteration})


def test_an_iteration_done_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    path = folder_of(tmp_path).save(3, replace(PROGRESS, env_steps=500), TENSORS, keep=2)
    assert folder_of(tmp_path).load(path)[0].env_steps == 500


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(ResumeError, match=str(path)):
        folder_of(tmp_path).load(path)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert folder_of(tmp_path / "none").latest() is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["tensors", "state"])
def test_what_is_not_finite_is_never_written(tmp_path: Path, number: float, place: str) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=1)
    progress, tensors = replace(PROGRESS, iteration=4), dict(TENSORS)
    if place == "tensors":
        tensors["critic.0.weight"] = torch.tensor([1.0, number, number])
    else:
        progress = replace(progress, metrics={"value_loss": number})
    with pytest.raises(NotFiniteError, match=r"not finite .*lower the learning rate") as told:
        folder_of(tmp_path).save(4, progress, tensors, keep=1)
    if place == "tensors":
        assert "critic.0.weight has numbers that are not finite (2 of 3)" in str(told.value)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert folder_of(tmp_path).load(path)[0] == PROGRESS


def test_one_that_an_older_version_wrote_with_a_nan_is_not_gone_on_from(tmp_path: Path) -> None:
    path = folder_of(tmp_path).save(3, PROGRESS, TENSORS, keep=2)
    spoiled = TENSORS | {"policy.layer.A": torch.tensor([1.0, float("nan")])}
    save_file(spoiled, path / "tensors.safetensors")
    with pytest.raises(ResumeError, match=rf"{path}: policy\.layer\.A has .*remove the folder"):
        folder_of(tmp_path).load(path)
