"""The report that every benchmark fills in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Report, describe_machine


def test_ratios_and_what_is_wanted_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("env", "Control steps per second")
    report.add("bare loop", 20.0, "steps/s")
    assert report.add("ours", 50.0, "steps/s", against="bare loop", at_least=2.0).ratio == 2.5
    assert report.finish(tmp_path)
    assert report.add("slow", 10.0, "steps/s", against="bare loop", at_least=0.9).met is False
    assert not report.finish(tmp_path)
    saved = json.loads((tmp_path / "env.json").read_text())
    assert [row["ratio"] for row in saved["measurements"]] == [None, 2.5, 0.5]
    assert saved["machine"]["cores"] >= 1
    printed = capsys.readouterr().out
    assert "2.50x" in printed
    assert "0.9x missed" in printed


def test_a_ratio_needs_a_baseline_of_the_same_unit() -> None:
    report = Report("env", "Control steps per second")
    report.add("bare loop", 20.0, "steps/s")
    with pytest.raises(ValueError, match="nothing was measured"):
        report.add("ours", 50.0, "steps/s", against="the loop")
    with pytest.raises(ValueError, match="in s, bare loop in steps/s"):
        report.add("ours", 50.0, "s", against="bare loop")
    with pytest.raises(ValueError, match="needs a baseline"):
        report.add("ours", 50.0, "steps/s", at_least=1.0)


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert "grpcio" in machine["packages"]
