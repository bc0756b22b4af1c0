"""A run's folder may have any name that a file system takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.embedded_valkey import start_valkey
from vlarl.config import RunConfig, save_config
from vlarl_cli import app

ODD_NAMES = ["my run", "läufe [1]", "[bold]x[/]", 'it\'s "quoted" $HOME; #1', "100% {x} 跑\\n"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_embedded_queue_keeps_its_files_there(tmp_path: Path, name: str) -> None:
    socket = tmp_path / "socket"
    process = start_valkey(tmp_path / name, socket)
    try:
        deadline = time.monotonic() + 60
        while not (socket.exists() and list((tmp_path / name).glob("appendonlydir/*"))):
            log = (tmp_path / name / "valkey.log").read_text()
            assert process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.01)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_hint_can_be_pasted(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    save_config(RunConfig(), run)
    again = ["up", "configs/reach.toml", "--run-dir", str(run)]
    refused = CliRunner().invoke(app, again)
    assert refused.exit_code == 1
    hint = refused.output.strip().partition("go on with ")[2]
    echoed = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv))' {hint}",
        ],
        capture_output=True,
        check=True,
    )
    assert json.loads(echoed.stdout)[1:] == ["--resume", str(run)]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_its_state_can_be_asked_for(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    save_config(RunConfig(), run)
    lines = [
        "queue unix:///nowhere/queue",
        "trainer 127.0.0.1:9 metrics http://127.0.0.1:9/metrics",
    ]
    (run / "addresses.txt").write_text("\n".join(lines) + "\n")
    asked = CliRunner().invoke(app, ["status", str(run)])
    assert asked.exit_code == 1
    assert f"error: nothing of {run} runs now; " in asked.output
