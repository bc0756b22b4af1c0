"""A folder has one owner: real processes, and owners on other machines as their files show them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vlarl.errors import FatalError
from vlarl.ownership import OwnedError, admission, owned

OTHERS = "0" * 32
PROGRAM = """
import sys, time
from pathlib import Path
from vlarl.ownership import owned
with owned(Path(sys.argv[1]), "vlarl up", beat_seconds=float(sys.argv[2])):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def owner(stack: ExitStack, folder: Path, beat_seconds: float = 10.0) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(beat_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    return process


def record(folder: Path, **changes: object) -> dict[str, object]:
    """What the folder's owner has written, with changes, written anew, as it would."""
    with (folder / ".owner").open("r+b") as file:
        changed = json.loads(file.read()) | changes
        os.pwrite(file.fileno(), json.dumps(changed).encode().ljust(1024), 0)
    return changed


def elsewhere(folder: Path, age: float) -> None:
    """An owner on another machine, last heard of so many seconds ago by its clock."""
    folder.mkdir()
    with owned(folder, "vlarl train"):
        left = json.loads((folder / ".owner").read_text())
    beat = time.time() - age
    strange = {"machine": "another", "host": "node-7", "pid": 41, "beat": beat}
    (folder / ".owner").write_text(json.dumps(left | strange))


def test_the_second_is_told_who_and_since_when(tmp_path: Path, stack: ExitStack) -> None:
    first = owner(stack, tmp_path / "run")
    with pytest.raises(OwnedError) as refused, owned(tmp_path / "run", "vlarl up"):
        pass
    host = os.uname().nodename
    since = time.strftime("%Y-%m-%d ")
    said = (
        f"{tmp_path / 'run'} is in use by `vlarl up`, process {first.pid} on {host}, since {since}"
    )
    assert str(refused.value).startswith(said)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".owner"]


def test_a_killed_owner_frees_it_at_once(tmp_path: Path, stack: ExitStack) -> None:
    first = owner(stack, tmp_path / "run")
    first.kill()
    first.wait()
    with owned(tmp_path / "run", "vlarl up"):
        assert json.loads((tmp_path / "run/.owner").read_text())["pid"] == os.getpid()


def test_what_a_killed_owner_lent_its_lock_to_still_has_the_folder(
    tmp_path: Path, stack: ExitStack
) -> None:
    """As a trainer in the midst of an update does, whose `vlarl up` was killed."""
    lends = PROGRAM.replace("owned\n", "lock_of, owned\nimport subprocess\n").replace(
        "    print(",
        "    child = ['sleep', '60']\n"
        "    lent = lock_of(Path(sys.argv[1]))\n"
        "    print(subprocess.Popen(child, pass_fds=lent).pid, flush=True)\n    print(",
    )
    command = [sys.executable, "-c", lends, str(tmp_path / "run"), "10"]
    first = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    assert first.stdout is not None
    child = int(first.stdout.readline())
    stack.callback(os.kill, child, signal.SIGKILL)
    assert first.stdout.readline() == "has it\n"
    first.kill()
    first.wait()
    with (
        pytest.raises(OwnedError, match="is gone while what it started is still ending"),
        owned(tmp_path / "run", "vlarl up"),
    ):
        pass
    os.kill(child, signal.SIGKILL)
    while Path(f"/proc/{child}").exists():
        time.sleep(0.01)
    stack.pop_all()
    with owned(tmp_path / "run", "vlarl up"):
        pass


def test_an_owner_leaves_nothing_behind(tmp_path: Path) -> None:
    with owned(tmp_path / "runs" / "run", "vlarl up"):
        pass
    assert not (tmp_path / "runs").exists(), "what was made and stayed empty"
    with owned(tmp_path / "runs" / "run", "vlarl up"):
        (tmp_path / "runs/run/config.toml").touch()
    assert [path.name for path in (tmp_path / "runs/run").iterdir()] == ["config.toml"]


def test_one_process_may_not_have_it_twice(tmp_path: Path) -> None:
    with owned(tmp_path, "vlarl eval"):
        with pytest.raises(OwnedError), owned(tmp_path, "vlarl eval"):
            pass
        assert (tmp_path / ".owner").exists(), "the refused one took it away"


def test_what_the_owner_starts_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert admission(tmp_path) == {}
    with owned(tmp_path / "run", "vlarl up"):
        letter = admission(tmp_path / "run")
        (tmp_path / "other").mkdir()
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), "10"]
        let_in = subprocess.run(command, env=os.environ | letter, input="", text=True, check=False)
        assert let_in.returncode == 0
        assert (tmp_path / "run/.owner").exists(), "it was the owner's child who left"
        stranger = subprocess.run(command, input="", text=True, check=False, stderr=subprocess.PIPE)
        assert "is in use by" in stranger.stderr
    for name, value in letter.items():
        monkeypatch.setenv(name, value)
    with owned(tmp_path / "other", "vlarl up"):
        assert (tmp_path / "other/.owner").exists(), "a letter is good for its own folder alone"


def test_an_owner_on_another_machine_is_believed(tmp_path: Path) -> None:
    elsewhere(tmp_path / "run", age=7)
    said = pytest.raises(OwnedError, match=r"process 41 on node-7, .* wait 60 s")
    with said, owned(tmp_path / "run", "vlarl train"):
        pass


def test_a_silent_one_is_not_and_finds_out(tmp_path: Path, stack: ExitStack) -> None:
    elsewhere(tmp_path / "run", age=5000)
    with owned(tmp_path / "run", "vlarl train", beat_seconds=0.02):
        pass
    # One that comes back, from a suspended machine say, ends.
    first = owner(stack, tmp_path / "run", beat_seconds=0.02)
    while first.poll() is None:
        record(tmp_path / "run", token=OTHERS, host="node-8")
    assert first.returncode == -signal.SIGTERM
    assert json.loads((tmp_path / "run/.owner").read_text())["host"] == "node-8"


def test_one_that_beats_is_believed_whatever_its_clock_says(tmp_path: Path) -> None:
    elsewhere(tmp_path / "run", age=86_400)
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(0.01):
            record(tmp_path / "run", beat=time.time() - 86_400)

    beating = threading.Thread(target=beats)
    beating.start()
    try:
        with pytest.raises(OwnedError), owned(tmp_path / "run", "vlarl up", beat_seconds=0.5):
            pass
    finally:
        ended.set()
        beating.join()


def test_without_locks_the_beat_decides(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = owner(stack, tmp_path / "run")

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr("fcntl.flock", unknown)
    said = pytest.raises(OwnedError, match=f"process {first.pid}")
    with said, owned(tmp_path / "run", "vlarl up"):
        pass
    first.kill()
    first.wait()
    with owned(tmp_path / "run", "vlarl up"):
        assert json.loads((tmp_path / "run/.owner").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/run", r"can't be made \(Not a directory\)"),
        ("file", r"can't be made \(File exists\)"),
        ("x" * 300, r"can't be made \(File name too long\)"),
        ("a\0b", "can't be made"),
    ],
)
def test_a_folder_that_can_not_be_is_one_sentence(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FatalError, match=said), owned(tmp_path / place, "vlarl up"):
        pass
