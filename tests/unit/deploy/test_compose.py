"""docker-compose.yml and the Dockerfiles, judged by the real tools; a container needs a cluster."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.tools import tool
from vlarl.config import load_config

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted(ROOT.glob("services/*/Dockerfile"))
SERVERS = {"policy": 50051, "env": 50052, "reward": 50053, "trainer": 50054}


def compose(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [tool("docker-compose"), "-f", str(file), "--profile", "cpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The compose file as docker resolves it."""
    done = compose(ROOT / "docker-compose.yml", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    resolved: dict[str, Any] = json.loads(done.stdout)
    return resolved


def test_the_compose_file_is_valid_and_a_wrong_key_is_not(tmp_path: Path) -> None:
    done = compose(ROOT / "docker-compose.yml", "config", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    wrong = tmp_path / "docker-compose.yml"
    text = (ROOT / "docker-compose.yml").read_text()
    wrong.write_text(text.replace("stop_grace_period", "stop_grace_perod"))
    assert "stop_grace_perod" in compose(wrong, "config", "-q").stderr


def test_every_container_is_confined(stack: dict[str, Any]) -> None:
    assert set(stack["services"]) == {"redis", "prometheus", "grafana", *SERVERS}
    for name, service in stack["services"].items():
        assert not service.get("privileged"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("user", "nobody") not in ("root", "0", "0:0"), name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_servers_start_when_what_they_need_is_healthy(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert service["healthcheck"]["test"], name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", (name, needed)
    needs = {name: set(s.get("depends_on", {})) for name, s in stack["services"].items()}
    assert needs["trainer"] == {"redis", "policy", "env", "reward"}
    assert needs["env"] == {"redis", "policy"}


def test_secrets_are_files_and_nothing_else(stack: dict[str, Any]) -> None:
    for name in SERVERS:
        service = stack["services"][name]
        mounted = {secret["source"] for secret in service["secrets"]}
        assert mounted == {"service-token", "queue-password"}
        assert not any(
            re.search("PASS|TOKEN|SECRET", key) for key in service.get("environment", {})
        )
    assert all("file" in secret for secret in stack["secrets"].values())


def test_the_run_finds_what_the_stack_offers(stack: dict[str, Any]) -> None:
    run = load_config(ROOT / "deploy/compose/run.toml")
    assert run.queue.url == "redis://redis:6379/0"
    assert run.policy.addresses == f"dns:///policy:{SERVERS['policy']}"
    assert run.trainer.address == run.policy.trainer_address == f"trainer:{SERVERS['trainer']}"
    secrets = {f"/run/secrets/{name}" for name in stack["secrets"]}
    ours = {str(run.security.token_file), str(run.queue.password_file)}
    assert secrets == ours | {"/run/secrets/grafana-password"}
    targets = {volume["target"] for volume in stack["services"]["policy"]["volumes"]}
    assert str(run.policy.checkpoint.parent) in targets
    for name in ("policy", "env", "reward"):
        command = stack["services"][name]["command"]
        assert command[:2] == ["serve", name]
        assert f"--listen=0.0.0.0:{SERVERS[name]}" in command


def test_commands_are_ones_that_the_command_line_knows(stack: dict[str, Any]) -> None:
    from typer.testing import CliRunner

    from vlarl.cli import app

    for name in ("policy", "env", "reward"):
        shown = CliRunner().invoke(app, ["serve", name, "--help"], env={"COLUMNS": "200"}).output
        for option in stack["services"][name]["command"][2:]:
            assert option.partition("=")[0] in shown, (name, option)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_dockerfiles(file: Path) -> None:
    done = subprocess.run([tool("hadolint"), str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    assert '"health", "' in text
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
    # BuildKit's own syntax would keep the images from being built without it.
    assert "--mount" not in text
    assert "# syntax" not in text


def test_every_service_has_a_dockerfile() -> None:
    assert [file.parent.name for file in DOCKERFILES] == sorted(SERVERS)


def test_prometheus_scrapes_every_server(stack: dict[str, Any]) -> None:
    settings = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) == set(SERVERS)
    for name in ("policy", "env", "reward"):
        assert f"--metrics-listen=0.0.0.0:{found['port']}" in stack["services"][name]["command"]
    assert f"0.0.0.0:{found['port']}" in stack["services"]["trainer"]["command"][0]
