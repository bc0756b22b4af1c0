"""A stack of real services of which one is killed: all others end, and nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tests.e2e.stack import descendants, survivors
from tests.unit.stack.test_service_processes import alive
from vlarl.config import ConfigError, RunConfig
from vlarl.config.libero import simulator_environment
from vlarl.launch.supervisor import Stack, simulator_python, supervise

# One that uses the system's folder of temporary files, and is as deaf as a hung engine.
LITTERER = """
import signal, tempfile, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(tempfile.mkdtemp() + "/socket", "w").close()
print("ready", flush=True)
time.sleep(600)
"""


def litter(folder: Path) -> bool:
    return any(folder.glob("**/socket"))


def logged(run_dir: Path, service: str, words: str) -> bool:
    log = run_dir / "logs" / f"{service}.log"
    return log.exists() and re.search(words, log.read_text()) is not None


@pytest.mark.parametrize("victim", ["queue", "reward", "trainer"])
async def test_whoever_is_killed_all_end_and_no_temporary_file_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    victim: str,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="t-"))  # Short, for the queue's socket.
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("vlarl.launch.supervisor._STOP_SECONDS", 2.0)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    stack = Stack(RunConfig(), run_dir, [])
    reward = [sys.executable, "-m", "vlarl", "serve", "reward", "--listen", "127.0.0.1:0"]
    reward += ["--set", f"queue.url=unix://{stack._folder}/queue"]
    pids: dict[str, int] = {}

    async def work() -> int:
        await stack.start()
        await stack._start("reward", reward)
        await stack._start("trainer", [sys.executable, "-c", LITTERER])
        while not (litter(folder) and logged(run_dir, "reward", " (serves|listens) on ")):
            await asyncio.sleep(0.02)
        for service in stack._services:
            assert service.process is not None
            pids[service.name] = service.process.pid
        os.kill(pids[victim], signal.SIGKILL)
        await stack.watching(asyncio.sleep(600))
        return 0

    assert await supervise(stack, work(), "again") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"the {victim} service died (killed by SIGKILL)" in said
    assert set(pids) == {"queue", "reward", "trainer"}
    assert not any(alive(pid) for pid in pids.values())
    assert list(folder.iterdir()) == []
    folder.rmdir()


async def test_an_env_server_that_is_killed_takes_its_simulators_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(RunConfig(), tmp_path, [])
    env = [str(simulator_python()), "-m", "vlarl", "serve", "env", "--listen", "127.0.0.1:0"]
    env += ["--set", f"queue.url=unix://{stack._folder}/queue", "--set", "env.processes=2"]
    family: set[int] = set()

    async def work() -> int:
        await stack.start()
        server = await stack._start("env", env, simulator_environment(os.environ))
        # It listens before its simulators are up.
        while not logged(tmp_path, "env", r" 2 \w+ simulators draw with "):
            await stack.watching(asyncio.sleep(0.02))
        assert server.process is not None
        family.update(descendants(server.process.pid))
        os.kill(server.process.pid, signal.SIGKILL)
        await stack.watching(asyncio.sleep(600))
        return 0

    assert await supervise(stack, work(), "again") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the env service died (killed by SIGKILL)" in said
    assert len(family) >= 2, "no simulators were there"
    assert survivors(family) == set()


def test_a_stack_that_never_starts_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    Stack(RunConfig(), tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_folder_that_is_too_long_for_sockets_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("t" * 60)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    stack = Stack(RunConfig(), tmp_path)
    with pytest.raises(ConfigError, match="too long for Unix sockets; set TMPDIR"):
        await stack.start()
    await stack.stop()
    assert list(folder.iterdir()) == []
