"""Collected episodes become files: whatever the BDDL file looks like."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("libero")
pytest.importorskip("h5py")

import h5py

from tests.recordings import RECORDED
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_jobs.demonstrations import worker_processes
from vlarl_jobs.demonstrations.collecting import PARTS, CollectionRequest, collect
from vlarl_jobs.demonstrations.episode_files import save_episode
from vlarl_jobs.demonstrations.hdf5 import read_episode
from vlarl_jobs.demonstrations.messages import SceneError, Settings

pytestmark = pytest.mark.sim

SCENE = "(define (problem LIBERO_Tabletop_Manipulation)\n  (:language 抓起碗))\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_scene_file_may_be_encoded_as_editors_do(tmp_path: Path, encoding: str) -> None:
    """With all episodes played: what is left is the file."""
    scene = tmp_path / "pick.bddl"
    scene.write_bytes(SCENE.replace("\n", "\r\n").encode(encoding))
    task = SuiteTask("mine", 0, "pick", "抓起碗", scene, None, 100)
    out = tmp_path / "out"
    save_episode(out / PARTS / "mine-00" / "000000.npz", read_episode(RECORDED, "demo_0"), 7)
    settings = Settings(job="play", profile="fast")
    (written,) = asyncio.run(
        collect([task], CollectionRequest(episodes=1, seed=0), settings, out, 0)
    )
    with h5py.File(written) as file:
        attributes = file["data"].attrs
        assert attributes["bddl_file_content"] == SCENE
        assert attributes["env_name"] == "LIBERO_Tabletop_Manipulation"
    assert read_episode(written, "demo_0").placement_seed == 7


class FailingWorker:
    """Stands in for a process; what all of them raise comes at the same turn of the loop."""

    errors: ClassVar[list[Exception]] = []

    def __init__(self, number: int) -> None:
        self._error = self.errors[number]

    async def run(self, *_: object) -> None:
        raise self._error

    def kill(self) -> None:
        """There is nothing to end."""


@pytest.mark.parametrize("others", [[], [SceneError("two")], [RuntimeError("a defect")]])
async def test_what_is_wrong_with_a_scene_is_said_whatever_else_fails(
    monkeypatch: pytest.MonkeyPatch, others: list[Exception]
) -> None:
    monkeypatch.setattr(FailingWorker, "errors", [SceneError("one"), *others])
    monkeypatch.setattr(worker_processes, "_Worker", FailingWorker)
    settings = Settings(job="play", profile="fast")
    with pytest.raises(SceneError, match="one"):
        await worker_processes.run_crew(settings, 1 + len(others), lambda: None, lambda *_: None)


async def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailingWorker, "errors", [RuntimeError("a defect")])
    monkeypatch.setattr(worker_processes, "_Worker", FailingWorker)
    with pytest.raises(ExceptionGroup) as raised:
        await worker_processes.run_crew(
            Settings(job="play", profile="fast"), 1, lambda: None, lambda *_: None
        )
    assert raised.group_contains(RuntimeError, match="a defect")
