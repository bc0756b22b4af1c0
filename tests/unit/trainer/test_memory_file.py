"""Memory that processes share, and that nobody leaves behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.roots import PYTHONPATH
from vlarl.learning.memory_file import MemoryFile, map_memory_file, open_memory_file


def test_what_is_appended_is_seen_by_who_maps_it() -> None:
    file = MemoryFile()
    assert file.append([b"one", b"", b"two"]) == 0
    assert file.append([b"three"]) == 6
    seen = map_memory_file(os.getpid(), file.descriptor, file.size)
    assert seen is not None
    assert seen.tobytes() == file.mapped().tobytes() == b"onetwothree"
    assert not seen.flags.writeable
    file.close()
    file.close()
    assert seen.tobytes() == b"onetwothree", "what is mapped stays"


def test_nothing_else_is_taken_for_a_memory_file(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    (tmp_path / "file").write_bytes(b"bytes")
    with (tmp_path / "file").open("rb") as file:
        assert open_memory_file(os.getpid(), file.fileno()) is None
        assert open_memory_file(os.getpid(), reading) is None, "and nobody waits for a pipe"
        assert open_memory_file(2**22, 3) is None
    os.close(reading)
    os.close(writing)


def test_a_killed_process_leaves_no_memory_behind() -> None:
    """Not in /dev/shm, nor in the system's count of shared memory."""
    size = 64 << 20
    program = (
        "import sys, time\n"
        "from vlarl.learning.memory_file import MemoryFile\n"
        "file = MemoryFile()\n"
        f"file.append([bytes({size})])\n"
        "print(file.descriptor, flush=True)\n"
        "time.sleep(600)\n"
    )
    before = set(Path("/dev/shm").iterdir())  # noqa: S108 - where a leftover would be
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    assert process.stdout is not None
    descriptor = int(process.stdout.readline())
    seen = map_memory_file(process.pid, descriptor, size)
    assert seen is not None
    held = shared_kilobytes()
    process.kill()
    process.communicate()
    assert not seen.any(), "it lives as long as somebody has it mapped"
    assert shared_kilobytes() >= held - (8 << 10)
    del seen
    deadline = time.monotonic() + 20
    while shared_kilobytes() > held - (48 << 10):
        assert time.monotonic() < deadline, "the memory is still there"
        time.sleep(0.01)
    assert set(Path("/dev/shm").iterdir()) <= before  # noqa: S108


def shared_kilobytes() -> int:
    (line,) = [
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:")
    ]
    return int(line.split()[1])
