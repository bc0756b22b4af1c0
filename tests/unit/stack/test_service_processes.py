"""Child processes of the stack: their output, their end, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlarl.launch.process import Service


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# A parent that ignores SIGTERM and has a child of its own, as an engine has.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


async def first_line(log: Path) -> str:
    while not (log.exists() and log.read_text().strip()):
        await asyncio.sleep(0.01)
    return log.read_text().splitlines()[0]


async def test_a_log_that_cant_be_written_is_said_and_kills_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "for n in range(2000): print(n, 'x' * 90, flush=True)\nprint('last', flush=True)"
    log = tmp_path / "env.log"
    log.symlink_to("/dev/full")
    service = Service("env", python(code), log)
    await service.start()
    said = await service.epitaph()
    await service.stop(1)
    assert "(exit code 0)" in said
    assert said.endswith("last"), "its words were lost with the log"
    assert capsys.readouterr().err.count("No space left on device") == 1


async def test_a_line_without_an_end_is_no_reason_to_stop_listening(tmp_path: Path) -> None:
    code = "print('x' * 3_000_000, flush=True); print('last', flush=True)"
    service = Service("env", python(code), tmp_path / "env.log")
    await service.start()
    said = await service.epitaph()
    await service.stop(1)
    assert "(exit code 0)" in said
    assert (tmp_path / "env.log").read_text().replace("\n", "") == "x" * 3_000_000 + "last"


async def test_a_death_names_the_service_the_signal_and_its_last_words(tmp_path: Path) -> None:
    code = "import os; print('out of memory', flush=True); os.kill(os.getpid(), 9)"
    service = Service("reward", python(code), tmp_path / "reward.log")
    await service.start()
    death = await service.obituary()
    await service.stop(1)
    assert "the reward service died (killed by SIGKILL)" in str(death)
    assert "out of memory" in str(death)
    assert (tmp_path / "reward.log").read_text() == "out of memory\n"


async def test_stopping_ends_children_too_even_stubborn_ones(tmp_path: Path) -> None:
    log = tmp_path / "policy.log"
    service = Service("policy", python(STUBBORN), log)
    await service.start()
    child = int(await first_line(log))
    assert alive(child)
    await service.stop(grace_seconds=0.2)
    assert await service.wait() == -signal.SIGKILL
    assert gone_within(child, 5)


@pytest.mark.parametrize("steps", range(1, 8))
async def test_one_that_is_cancelled_while_it_starts_can_be_stopped_gently(
    tmp_path: Path, steps: int
) -> None:
    log = tmp_path / "run.log"
    service = Service("run", python("import time; print('up', flush=True); time.sleep(600)"), log)
    starting = asyncio.create_task(service.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    assert service.process is not None
    assert await first_line(log) == "up"
    await service.stop(grace_seconds=30)
    assert await service.wait() == -signal.SIGTERM


async def test_stopping_lets_a_service_drain(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
# No print: the signal may come while the one below isn't done, and it can't be entered twice.
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"drained\\n"), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""
    log = tmp_path / "env.log"
    service = Service("env", python(code), log)
    await service.start()
    await first_line(log)
    await service.stop(grace_seconds=10)
    assert await service.wait() == 0
    assert log.read_text() == "ready\ndrained\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is signalled on Linux only")
def test_a_killed_supervisor_takes_its_services_along(tmp_path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from vlarl.launch.process import Service

async def main():
    command = {python("import time; time.sleep(600)")!r}
    service = Service("env", command, Path({str(tmp_path)!r}) / "log")
    await service.start()
    print(service.process.pid, flush=True)
    await service.wait()

asyncio.run(main())
"""
    supervisor = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    service = int(supervisor.stdout.readline())
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    supervisor.stdout.close()
    assert gone_within(service, 10), "the service outlived its supervisor"


async def test_the_last_words_of_a_killed_service_are_not_waited_for_for_ever(
    tmp_path: Path,
) -> None:
    """Its child holds the output open, in a session of its own as torchrun's ranks have."""
    code = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
    service = Service("policy", python(code), tmp_path / "policy.log")
    await service.start()
    child = int(await first_line(tmp_path / "policy.log"))
    assert service.process is not None
    service.process.kill()
    try:
        assert "killed by SIGKILL" in str(await service.obituary())
        await service.stop(1)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is signalled on Linux only")
def test_who_ends_with_its_parent_does_so_in_a_session_of_its_own() -> None:
    child = """
import signal, time
from vlarl.parent_death import end_with_parent
end_with_parent(signal.SIGTERM)
print("tied", flush=True)
time.sleep(600)
"""
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True, text=True,
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
    launcher = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    rank = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert gone_within(rank, 10)
