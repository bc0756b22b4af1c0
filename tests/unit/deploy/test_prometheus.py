"""Prometheus's configuration, alerts and metrics, judged by promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from tests.unit.deploy.tools import tool

pytestmark = pytest.mark.torch
FOLDER = Path(__file__).parents[3] / "deploy/prometheus"


def promtool(*arguments: str, given: bytes = b"") -> tuple[int, str]:
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, cwd=FOLDER, input=given, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


def alerts() -> list[dict[str, str]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    rules: list[dict[str, str]] = group["rules"]
    return rules


def test_configuration_and_rules_are_valid() -> None:
    code, said = promtool("check", "config", "prometheus.yml")
    assert code == 0, said
    assert f"{len(alerts())} rules found" in said


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    code, said = promtool("test", "rules", "alerts_test.yml")
    assert code == 0, said


def test_a_story_that_goes_otherwise_is_noticed(tmp_path: Path) -> None:
    for file in ("alerts.yml", "alerts_test.yml"):
        (tmp_path / file).write_text((FOLDER / file).read_text())
    rules = (tmp_path / "alerts.yml").read_text()
    assert 'cause!="recycled"' in rules
    (tmp_path / "alerts.yml").write_text(rules.replace('{cause!="recycled"}', ""))
    code, said = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    assert code == 1
    assert "SimulatorsCrash" in said


def test_each_alert_has_a_story() -> None:
    stories = (FOLDER / "alerts_test.yml").read_text()
    for alert in alerts():
        assert alert["alert"] in stories


def test_alerts_watch_what_there_is(known: dict[str, set[str]]) -> None:
    for alert in alerts():
        names = re.findall(r"\b(?:vlarl_\w+|up)\b", alert["expr"])
        assert names, alert["alert"]
        assert set(names) <= known.keys(), alert["alert"]


def test_the_page_of_metrics_is_what_the_code_shows(tmp_path: Path) -> None:
    from scripts.prometheus_reference import reference

    page = FOLDER.parents[1] / "docs/prometheus.md"
    assert page.read_text() == reference(tmp_path), "run `make docs`"


@pytest.mark.parametrize("service", ["env", "policy", "reward", "trainer"])
def test_metrics_follow_the_conventions(
    registries: dict[str, list[CollectorRegistry]], service: str
) -> None:
    both = [*registries[service], *registries["all"]]
    shown = b"".join(generate_latest(one) for one in both)
    assert b"process_" in shown
    code, said = promtool("check", "metrics", given=shown)
    assert (code, said) == (0, "")
