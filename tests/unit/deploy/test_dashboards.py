"""Grafana's dashboards: as the code makes them, asking for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

pytest.importorskip("grafana_foundation_sdk", reason="requirements/dev.txt has it")

from tests.unit.deploy.tools import dashboards_code

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
GRAFANA = ROOT / "deploy/grafana"


@pytest.fixture(scope="module")
def code() -> ModuleType:
    return dashboards_code()


def test_the_files_are_what_the_code_makes(code: ModuleType) -> None:
    made = {f"{board.name}.json": code.build(board) for board in code.BOARDS}
    files = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    assert files == made, "run `python deploy/grafana/build.py`"


def test_every_query_asks_for_what_there_is(code: ModuleType, known: dict[str, set[str]]) -> None:
    asked = set()
    for board in code.BOARDS:
        for graph in code.graphs(board):
            for legend, query in graph.queries.items():
                names = set(re.findall(r"\b(?:(?:vlarl|grpc_server|process)_\w+|up)\b", query))
                where = f"{board.title}, {graph.title}: {query}"
                labels = {"service", "instance"}.union(*(known.get(name, set()) for name in names))
                assert names, where
                assert names <= known.keys(), where
                grouped = re.findall(r"\bby \(([^)]*)\)", query)
                wanted = {label.strip() for one in grouped for label in one.split(",")}
                wanted |= set(re.findall(r"\{\{(\w+)\}\}", legend))
                assert wanted <= labels, where
                counters = {name for name in names if name.endswith(("_total", "_bucket"))}
                assert not counters or "rate(" in query or "increase(" in query, where
                asked |= names
    for name in ("logprob_gap", "dense_success_correlation", "task_probability", "success_rate"):
        assert f"vlarl_trainer_{name}" in asked


def test_each_board_says_how_to_read_it(code: ModuleType) -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (uid,) = {one["uid"] for one in source["datasources"]}
    for path in (GRAFANA / "dashboards").iterdir():
        panels = json.loads(path.read_text())["panels"]
        assert panels[0]["type"] == "text"
        assert len(panels[0]["options"]["content"]) > 100
        used = {panel["datasource"]["uid"] for panel in panels if panel["type"] == "timeseries"}
        assert used == {uid}
        places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels]
        assert len(set(places)) == len(places), "two panels in one place"
        assert all(x + width <= 24 for x, _, width, _ in places)
