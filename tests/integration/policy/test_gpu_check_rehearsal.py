"""The check for a GPU, rehearsed on a CPU: all that it does there, it can do."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]


def rehearse(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--out", str(out)]
    return subprocess.run(
        [*command, "--scratch", str(out / "scratch"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_every_stage_but_up_finds_what_is_wanted(tmp_path: Path) -> None:
    short = ("--servers", "golden-exact", "--clients", "1,4", "--load", "1")
    done = rehearse(tmp_path, "--start", "500", "--seconds", "580", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["errors"] == []
    rows = {row["name"]: row for row in results["rows"]}
    assert not [name for name, row in rows.items() if row["ok"] is False]
    small, large = "golden exact float32", "7B"
    assert rows["probe: cuda"]["value"] is False
    assert rows[f"{small}: greedy tokens that are the original's"]["value"] == 1.0
    gap = rows[f"{small}: greedy log-probs, largest difference from the original's"]
    assert gap["value"] < 1e-4
    assert rows[f"{small}: swap, versions after it"]["value"] == [1]
    merged = rows[f"{small}: layers merged as the trainer does"]
    assert merged["ok"] is True
    assert merged["note"] == f"of {merged['value']}"
    assert rows[f"{small}: processes that outlive a killed server"]["value"] == 0
    assert rows[f"{large}: 4 clients"]["value"] > 0
    assert rows[f"{large}: swap 2, versions after it"]["value"] == [2]
    after = rows[f"{large}: after the last swap, largest difference of a log-prob from plain torch"]
    assert after["value"] < 1e-4
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert set(archive.getnames()) == {"golden-exact-float32-0.log", "7B-0.log"}
    assert not (tmp_path / "scratch").exists()
    assert (tmp_path / "report.txt").read_text() in done.stdout


async def test_a_server_that_does_not_start_is_started_in_another_way(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu_check import server
    from benchmarks.gpu_check.check import Check
    from benchmarks.gpu_check.results import Results, now

    # The first is refused by vLLM, the second is how it doesn't run unless it is told.
    rungs = (("no such type", {"dtype": "float7"}, {}), ("few", {"max_num_seqs": 3}, {}))
    monkeypatch.setattr(server, "RUNGS", rungs)
    deadline = now() + 600  # of this process, which runs other tests before
    check = Check(Results(tmp_path), tmp_path, tmp_path, deadline, cuda=False, rehearse=True)
    settings = ["policy.cpu_threads=1", "policy.kv_cache_mib=64"]
    started = server.Server(check, "any", checkpoint, "float32", settings)
    try:
        address = await started.serving(280)
    finally:
        started.stop()
    assert address.startswith("127.0.0.1:")
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["name"], row["note"], row["ok"]) == ("any: serves after", "few", False)
    assert "float7" in (tmp_path / "any-0.log").read_text()


def test_without_a_gpu_it_says_what_does_without(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "this check needs a CUDA device; --rehearse does without"
    assert not (tmp_path / "out").exists()
