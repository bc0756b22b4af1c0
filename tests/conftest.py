"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from tests.embedded_valkey import start_valkey
from tests.processor_time import ProcessorTime
from tests.skips import (  # noqa: F401 - pytest finds its hooks here
    HAS_SIMULATOR,
    HAS_TORCH,
    OTHER_SIMULATOR,
    OTHER_TORCH,
    check_environment,
    pytest_make_collect_report,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from vlarl.config import QueueConfig
from vlarl.config.libero import steady_products
from vlarl.queue.rollout_queue import RolloutQueue

# Scenes of this process, as those of simulators' own processes; numpy isn't imported yet.
for name, value in steady_products().items():
    os.environ.setdefault(name, value)

# A slow machine is no failure: time is measured in benchmarks/.
hypothesis.settings.register_profile("vlarl", deadline=None)
hypothesis.settings.load_profile("vlarl")

# Folders whose modules import torch or vLLM, or need what came with them.
TORCH_FOLDERS = (
    "unit/ablation",
    "unit/policy",
    "unit/report",
    "unit/trainer",
    "integration/policy",
    "integration/trainer",
    "e2e",
)
collect_ignore_glob = [] if HAS_TORCH else [*TORCH_FOLDERS]


# Files whose tests look at the same server of tests/integration/policy/conftest.py.
SERVED = tuple(
    f"tests/integration/policy/test_policy_{name}.py" for name in ("fuzz", "server", "swap")
)


class Scheduling(LoadFileScheduling):
    """A file is one process's work, and so are the files that share a server."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return SERVED[0] if file in SERVED else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """With --dist loadfile."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


# What is imported stays: to look through it again and again was a sixth of the collection.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Ends the session where its environment isn't whole."""
    check_environment()
    config.pluginmanager.register(ProcessorTime())


def pytest_collection_finish() -> None:
    """From here on there is garbage."""
    if HAS_TORCH:  # Not among scenes, whose graphics must be freed as early as they always were.
        gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves to each environment its own tests; `make test` runs the suite in both."""
    for item in items:
        if item.get_closest_marker("torch") and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason=OTHER_TORCH))
        if item.get_closest_marker("sim") and not HAS_SIMULATOR:
            item.add_marker(pytest.mark.skip(reason=OTHER_SIMULATOR))


@pytest.fixture(scope="session", autouse=True)
def folder_of_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All that the session's processes put into /tmp goes with it: a killed one removes nothing."""
    tmp_path_factory.getbasetemp()  # stays where it is, to be looked at
    folder = tempfile.mkdtemp(prefix="vlarl-tests-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
    shutil.rmtree(folder)


class Valkey:
    """A real server that a test can kill and start again on the same files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = start_valkey(self.directory / "files", self.socket)
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            assert self.process.poll() is None, (self.directory / "files/valkey.log").read_text()
            assert time.monotonic() < deadline, "valkey did not start"
            time.sleep(0.01)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def running_valkey() -> Iterator[Valkey]:
    """A Valkey server on a Unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="vlarl-"))
    server = Valkey(directory)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.kill()
        shutil.rmtree(directory)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """One of the test's own."""
    with running_valkey() as server:
        yield server


@pytest.fixture
async def queue(valkey: Valkey) -> AsyncIterator[RolloutQueue]:
    """A rollout queue on that server."""
    async with RolloutQueue(QueueConfig(url=valkey.url)) as opened:
        yield opened


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], None]]:
    """Makes a folder a file system of its own, of so many MiB."""
    mounted: list[Path] = []

    def mount(folder: Path, mebibytes: int) -> None:
        if shutil.which("mount") is None:
            pytest.skip("mount isn't installed")
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    try:
        yield mount
    finally:
        for folder in mounted:
            subprocess.run(["umount", str(folder)], check=True)
