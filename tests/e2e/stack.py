"""Runs `vlarl up` in small, and looks at what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlarl.config import TrainerConfig

ROOT = Path(__file__).parents[2]

# The loop of configs/embedded.toml, cut to what shows that it closes.
SMALL = {
    "tasks.indices": "[0]",
    "tasks.max_actions": "3",
    "env.processes": "2",
    "trainer.iterations": "3",
    "trainer.episodes_per_iteration": "3",
    "trainer.ppo.mini_batch": "6",
    "trainer.ppo.micro_batch": "3",
    "evaluation.episodes_per_task": "1",
    "queue.claim_after_seconds": "5.0",
}


def of_groups() -> dict[str, str]:
    """Settings of a run that compares episodes of one placement: all that configs/embedded.toml and
    `SMALL` set for PPO is as if they didn't.
    """
    written = tomllib.loads((ROOT / "configs/embedded.toml").read_text())["trainer"]
    names = {f"trainer.{name}.{key}" for name in ("ppo", "critic") for key in written[name]}
    names |= {name for name in SMALL if name.startswith("trainer.ppo.")}
    defaults = TrainerConfig().model_dump(mode="json")
    unset = {name: defaults[name.split(".")[1]][name.split(".")[2]] for name in names}
    settings = {
        "trainer.algorithm": "grpo",
        "trainer.grpo.group_size": 3,
        "trainer.grpo.max_attempts": 2,
        "trainer.grpo.mini_batch": 6,
        "trainer.grpo.micro_batch": 3,
    }
    return {name: json.dumps(value) for name, value in (unset | settings).items()}


class Run:
    """One `vlarl up` in a process group of its own."""

    def __init__(self, run_dir: Path, checkpoint: Path, **settings: str) -> None:
        self.run_dir = run_dir
        chosen = {**SMALL, "policy.checkpoint": str(checkpoint), **settings}
        self._settings = [part for k, v in chosen.items() for part in ("--set", f"{k}={v}")]
        self.output = run_dir.parent / f"{run_dir.name}.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, resume: bool = False) -> subprocess.Popen[bytes]:
        where = (
            ["--resume", str(self.run_dir)]
            if resume
            else [str(ROOT / "configs/embedded.toml"), "--run-dir", str(self.run_dir)]
        )
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vlarl", "up", *where, *self._settings],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def iterations(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        file = self.run_dir / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]

    def service(self, name: str) -> int:
        """Process id of one service."""
        assert self.process is not None
        marks = {"queue": "valkey-server", "trainer": " train --resume"}
        mark = marks.get(name, f" serve {name} ")
        commands = {pid: command_line(pid) for pid in children(self.process.pid)}
        (pid,) = [pid for pid, command in commands.items() if mark in command]
        return pid


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], run: Run) -> None:
    """Waits until the condition holds while the run lives.

    Raises:
        AssertionError: the run ended or five minutes passed; the message holds its output.
    """
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, run.output.read_text()
        assert time.monotonic() < deadline, run.output.read_text()
        time.sleep(0.1)


def command_line(pid: int) -> str:
    """A process's arguments; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """Living children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def descendants(pid: int) -> set[int]:
    """All living descendants of a process."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        below = children(todo.pop())
        found.update(below)
        todo += below
    return found


def survivors(pids: set[int], seconds: float = 5.0) -> set[int]:
    """Those of the processes that still live (zombies don't count) after some seconds."""

    def living() -> set[int]:
        alive = set()
        for pid in pids:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z":
                alive.add(pid)
        return alive

    deadline = time.monotonic() + seconds
    while (left := living()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills what a failed test left running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
