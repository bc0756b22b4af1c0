"""A run with a learned reward, and a real Prometheus beside it: every panel of every dashboard has
something to show.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("grafana_foundation_sdk", reason="requirements/dev.txt has it")

from tests.e2e.stack import ROOT, Run, wait_for
from tests.unit.deploy.tools import dashboards_code, find_tool
from vlarl.launch.supervisor import free_address

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

# Of these a run of minutes in which nothing goes wrong, and nothing succeeds, has no number.
NOTHING_YET = {
    "vlarl_trainer_gpu_memory_bytes",
    "vlarl_trainer_dense_return_success",
    "vlarl_trainer_dense_success_correlation",
    "vlarl_trainer_dense_length_correlation",
}


class Prometheus:
    """A server that scrapes a run's services once a second."""

    def __init__(self, program: str, folder: Path, addresses: dict[str, str]) -> None:
        self._address = free_address()
        jobs = [
            {"targets": [address], "labels": {"service": name}}
            for name, address in addresses.items()
        ]
        shutil.copy(ROOT / "deploy/prometheus/alerts.yml", folder)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "2s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{"job_name": "vlarl", "static_configs": jobs}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [program, f"--web.listen-address={self._address}"]
        command += [f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def ask(self, what: str, **parameters: object) -> dict[str, Any]:
        """The `data` of an answer of its HTTP interface."""
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            data: dict[str, Any] = json.loads(answer.read())["data"]
        return data


def metrics_addresses(run: Run) -> dict[str, str]:
    """HOST:PORT of each service's metrics."""
    found = {}
    for line in (run.run_dir / "addresses.txt").read_text().splitlines():
        name, _, *metrics = line.split()
        if metrics:
            found[name] = metrics[1].removeprefix("http://").removesuffix("/metrics")
    return found


def test_it_takes_part_and_every_panel_has_something_to_show(
    tmp_path: Path, checkpoint: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    judge, folder = tmp_path / "judge", tmp_path / "prometheus"
    shutil.copytree(checkpoint, judge)
    (judge / "reward_model.json").write_text('{"version": "untrained"}')
    folder.mkdir()
    settings = {"reward.model": "rprm", "reward.checkpoint": str(judge), "reward.threads": "1"}
    # What only the last iteration and its evaluation say, the trainer may take along before it has
    # been scraped.
    course = {
        "trainer.iterations": "2",
        "trainer.critic.warmup_iterations": "0",
        "evaluation.every_iterations": "1",
    }
    run = Run(tmp_path / "run", checkpoint, **settings, **course)
    process = run.start()
    started.append(process)
    wait_for((run.run_dir / "addresses.txt").exists, process, run)
    begun = time.time()
    addresses = metrics_addresses(run)
    assert set(addresses) == {"policy", "env", "reward", "trainer"}
    prometheus = None
    if found := find_tool("prometheus"):
        prometheus = Prometheus(found, folder, addresses)
        started.append(prometheus.process)
    assert process.wait(600) == 0, run.output.read_text()

    for line in run.iterations():
        # Nine steps of nothing solved: all that was paid is a tenth of what the judge said.
        assert line["success_rate"] == 0
        assert 0 < line["dense_return"] < 3
        assert line["episode_return"] == pytest.approx(0.1 * line["dense_return"], rel=1e-5)
        assert line["dense_share"] == pytest.approx(1.0)
    if prometheus is None:
        pytest.skip("prometheus is not installed here: nothing was asked for the panels")
    check_panels(prometheus, begun)
    rules = prometheus.ask("rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}, rules


def check_panels(prometheus: Prometheus, begun: float) -> None:
    """Asks what every panel asks, of the time since `begun`."""
    code = dashboards_code()
    empty, silent = [], []
    for board in code.BOARDS:
        for graph in code.graphs(board):
            for legend, query in graph.queries.items():
                span = {"start": begun, "end": time.time(), "step": 1}
                asked = query.replace("$__rate_interval", "1m")
                series = prometheus.ask("query_range", query=asked, **span)["result"]
                where = f"{board.title}, {graph.title}, {legend}: {query}"
                values = [float(value) for one in series for _, value in one["values"]]
                if not series:
                    empty.append(where)
                elif query not in NOTHING_YET and not any(map(math.isfinite, values)):
                    silent.append(where)
    assert not empty, "\n".join(empty)
    assert not silent, "\n".join(silent)
