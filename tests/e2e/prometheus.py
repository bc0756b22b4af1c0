"""A real Prometheus beside a run: what every panel of every dashboard asks, it is asked."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.stack import ROOT, Run
from tests.unit.deploy.tools import dashboards_code
from vlarl.launch.supervisor import free_address

# Of these a run of minutes in which nothing goes wrong, and nothing succeeds, has no number.
NOTHING_YET = {
    "vlarl_trainer_groups_kept",
    "vlarl_trainer_groups_dropped_success",
    "vlarl_trainer_groups_dropped_failure",
    "vlarl_trainer_groups_void",
    "vlarl_trainer_group_attempts",
    "vlarl_trainer_episodes_per_learned",
    "vlarl_trainer_group_deviation",
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


def check_panels(prometheus: Prometheus, begun: float, ended: float) -> None:
    """Asks what every panel asks, of the time between."""
    code = dashboards_code()
    empty, silent = [], []
    for board in code.BOARDS:
        for graph in code.graphs(board):
            for legend, query in graph.queries.items():
                span = {"start": begun, "end": ended, "step": 1}
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
