"""The check's numbers are safe as soon as they are there."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu_check.results import Results


def test_numbers_and_failures_are_saved_as_they_come(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add("speed", 12345.678, "actions/s", "8 clients")
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["value"] == 12345.678
    results.add("parity", 0.5, "nats", ok=False)
    results.add("orphans", 0, ok=True)
    assert results.unwanted == 1
    try:
        raise RuntimeError("out of memory")
    except RuntimeError:
        results.fail("seven")
    assert results.unwanted == 2
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [row["ok"] for row in saved["rows"]] == [None, False, True]
    assert "out of memory" in saved["errors"][0]
    speed, parity, orphans, *rest = (tmp_path / "report.txt").read_text().splitlines()
    assert speed.split() == ["speed", "12,346", "actions/s", "8", "clients"]
    assert parity.split() == ["parity", "0.5", "nats", "NO"]
    assert orphans.split() == ["orphans", "0", "ok"]
    assert rest[-1] == "RuntimeError: out of memory"
