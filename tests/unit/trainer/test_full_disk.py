"""A disk that is full, a real one: one sentence, and nothing that was there is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from vlarl.config import SftConfig  # noqa: E402
from vlarl.data.dataset import Capture, Frames, TaskSamples, read_dataset, write_task  # noqa: E402
from vlarl.disk import DiskFullError, explained  # noqa: E402
from vlarl.files import durable_folder  # noqa: E402
from vlarl.json_lines import JsonLines  # noqa: E402
from vlarl.learning.checkpoints import CheckpointFolder, read_state, write_state  # noqa: E402
from vlarl.learning.export import export_checkpoint  # noqa: E402
from vlarl.learning.stage_progress import StageProgress, load_stage, stage_checkpoints  # noqa: E402
from vlarl.weights.checkpoint import write_tensors  # noqa: E402
from vlarl_cli import app  # noqa: E402
from vlarl_trainer.record.progress import Progress  # noqa: E402

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"
PROGRESS = Progress(run_id="run", base_digest="abc", iteration=1)
SMALL = {"weights": torch.arange(1000.0)}
LARGE = {"weights": torch.ones(1_000_000)}
"""4 MB, more than the disk has."""


def folder_of(directory: Path) -> CheckpointFolder[Progress]:
    return CheckpointFolder(directory, "iteration-", 5, Progress)


@pytest.fixture
def disk(tmp_path: Path, small_disk: Callable[[Path, int], None]) -> Path:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    small_disk(folder, 3)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_checkpoint_without_room_is_not_begun(disk: Path) -> None:
    first = folder_of(disk).save(1, PROGRESS, SMALL, keep=2)
    before = content(disk)
    following = replace(PROGRESS, iteration=2)
    with pytest.raises(DiskFullError) as told:
        folder_of(disk).save(2, following, LARGE, keep=2)
    said = str(told.value)
    assert said.startswith(f"{disk}: its disk has no room for the checkpoint iteration-00002 (4.8")
    assert " MiB), 2.9" in said
    assert "--resume" in said
    assert content(disk) == before
    assert folder_of(disk).latest() == first
    assert folder_of(disk).load(first)[0] == PROGRESS
    # Room is made, and it goes on.
    folder_of(disk).save(2, following, SMALL, keep=2)
    assert folder_of(disk).latest() != first


def test_a_disk_that_fills_up_meanwhile_costs_the_new_checkpoint_alone(disk: Path) -> None:
    """Nobody knew before how much it would be; safetensors has an error of its own for that."""
    final = disk / "step-1"
    write_state(final, {"step": 1}, SMALL)
    before = content(disk)
    with (
        pytest.raises(DiskFullError, match=r"no room for the checkpoint step-1, .* are free"),
        durable_folder(final) as folder,
    ):
        write_tensors(folder / "tensors.safetensors", LARGE)
    assert content(disk) == before
    assert not list(disk.glob(".*")), "what was begun takes no room"
    assert torch.equal(read_state(final)[1]["weights"], SMALL["weights"])


def test_a_stage_of_fine_tuning_goes_on_from_its_last_checkpoint(disk: Path) -> None:
    fresh = StageProgress("abc", 8)
    done = fresh.after(2, None)
    stage_checkpoints(disk).save(done.step, done, SMALL, keep=1)
    with pytest.raises(DiskFullError, match="step-0000004"):
        stage_checkpoints(disk).save(4, done.after(4, None), LARGE, keep=1)
    assert load_stage(disk, fresh, SftConfig)[0] == done


def test_an_export_without_room_is_not_begun(disk: Path, tmp_path: Path) -> None:
    with (disk / "filling").open("wb") as file:
        file.write(bytes(5 * 2**19))  # 0.5 MiB are left, less than the model takes
    with pytest.raises(
        DiskFullError, match=r"the checkpoint exported \(.* MiB\), 512 KiB are free"
    ):
        export_checkpoint(GOLDEN, disk / "exported", {})
    assert [path.name for path in disk.iterdir()] == ["filling"]


def test_a_part_of_a_dataset_without_room_leaves_the_others(disk: Path) -> None:
    capture = Capture("agentview", 8, None, "fast", 1)

    def part(count: int) -> TaskSamples:
        return TaskSamples(
            suite="reach",
            index=0,
            instruction="reach",
            frames=Frames.of([bytes(count)]),
            actions=np.zeros((1, 7), np.float32),
            episodes=np.zeros(1, np.int32),
            poses=np.zeros((1, 0), np.float32),
            pose_names=(),
        )

    write_task(disk, capture, part(10), "00000")
    before = content(disk)
    with pytest.raises(DiskFullError, match=r"no room for the dataset's .*00001"):
        write_task(disk, capture, part(4_000_000), "00001")
    assert content(disk) == before
    assert len(read_dataset(disk).tasks) == 1


def test_a_command_says_it_in_one_sentence(disk: Path) -> None:
    done = CliRunner().invoke(app, ["checkpoint", "tiny", str(disk / "tiny")])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {disk}: its disk has no room for the checkpoint tiny")
    assert isinstance(done.exception, SystemExit)
    assert list(disk.iterdir()) == []  # no half of a checkpoint


def test_lines_of_metrics_are_told_with_the_runs_folder(disk: Path) -> None:
    lines = JsonLines(disk / "metrics.jsonl")
    with pytest.raises(OSError, match="No space left"):
        (disk / "filling").write_bytes(bytes(4 * 2**20))
    with pytest.raises(DiskFullError, match=f"{disk}: its disk has no room"), explained(disk):
        lines.append({"loss": 0.5})


def test_other_errors_and_other_disks_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlarl.disk._PLENTY", 0)
    with pytest.raises(PermissionError), explained(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with pytest.raises(DiskFullError, match="it isn't that of "), explained(tmp_path):
        Path("/dev/full").write_bytes(b"1")
