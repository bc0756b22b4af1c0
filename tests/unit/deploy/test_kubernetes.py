"""The Kubernetes manifests, as kustomize builds them, against the schemas of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.deploy.tools import KUBERNETES, OVERLAYS, Object, built, built_with
from vlarl.config import load_config
from vlarl.queue.rollout_queue import EPISODES

VERSION = "1.32"
CUSTOM = {"keda.sh", "trainer.kubeflow.org", "monitoring.coreos.com", "jobset.x-k8s.io"}
"""Groups of custom resources; test_custom_resources.py judges them."""
PORTS = {"policy": 50051, "env": 50052, "reward": 50053, "trainer": 50054}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and spec of every pod that objects would make."""
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "TrainingRuntime":
            (node,) = spec["template"]["spec"]["replicatedJobs"]
            spec = node["template"]["spec"]
        if isinstance(spec.get("template"), dict) and "containers" in spec["template"]["spec"]:
            yield one["metadata"]["name"], spec["template"]["spec"]


def chosen(objects: list[Object], kind: str, name: str) -> list[Object]:
    return [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_follow_their_schemas(overlay: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="requirements/dev.txt has it")
    checked = 0
    for one in built(overlay):
        if one["apiVersion"].split("/")[0] in CUSTOM:
            continue
        validate.validate(one, VERSION, strict=True)
        checked += 1
    assert checked > 20


def test_a_misspelt_field_would_be_noticed() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="requirements/dev.txt has it")
    (policy,) = [
        one
        for one in built("cpu")
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", "policy")
    ]
    wrong = yaml.safe_load(yaml.safe_dump(policy).replace("readinessProbe", "readynessProbe"))
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_objects_refer_to_is_there(overlay: str) -> None:
    objects = built(overlay)
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for name, pod in pods(objects):
        mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claims = {"data"} if name == "redis" else set()
        assert mounted == volumes.keys() | claims, name
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in names
            assert volume.get("secret", {}).get("secretName", "vlarl") == "vlarl"
    for service, port in PORTS.items():
        (found,) = chosen(objects, "Service", service)
        assert {"grpc": port, "metrics": 9464} == {
            one["name"]: one["port"] for one in found["spec"]["ports"]
        }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_confined(overlay: str) -> None:
    found = dict(pods(built(overlay)))
    assert len(found) == 5
    for name, pod in found.items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"], name
        assert context["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert ":" in container["image"], "the overlay's tag didn't reach it"
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"], name
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_the_pod_that_fills_checkpoints_is_let_into_the_namespace() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="requirements/dev.txt has it")
    pod = yaml.safe_load((KUBERNETES / "fill.yaml").read_text())
    validate.validate(pod, VERSION, strict=True)
    (reward,) = chosen(built("cpu"), "Deployment", "reward")
    reader = reward["spec"]["template"]["spec"]
    # What it writes can be read by the user of those who read it, and pods like them are let in.
    assert pod["metadata"]["namespace"] == reward["metadata"]["namespace"]
    assert pod["spec"]["securityContext"] == reader["securityContext"]
    (filling,), (serving,) = pod["spec"]["containers"], reader["containers"]
    assert filling["securityContext"] == serving["securityContext"]
    assert {"name": "checkpoints", "mountPath": "/checkpoints"} in filling["volumeMounts"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_run_loads_and_names_the_services(overlay: str) -> None:
    config = load_config(KUBERNETES / "overlays" / overlay / "run.toml")
    assert config.policy.addresses == "dns:///policy:50051"
    assert config.policy.trainer_address == "trainer:50054"
    assert config.trainer.address == "0.0.0.0:50054"
    assert config.queue.url == "redis://redis:6379/0"
    security = config.security
    for file in (config.queue.password_file, security.token_file, security.client_token_file):
        assert file is not None
        assert file.parent == Path("/run/secrets/vlarl")


def test_env_pods_are_scaled_by_the_stream_of_episodes() -> None:
    (scaled,) = [one for one in built("gpu") if one["kind"] == "ScaledObject"]
    (trigger,) = scaled["spec"]["triggers"]
    processes = load_config(KUBERNETES / "overlays/gpu/run.toml").env.processes
    assert trigger["metadata"]["stream"] == EPISODES
    assert trigger["metadata"]["streamLength"] == str(processes)


@pytest.mark.parametrize("component", ["env-hpa", "trainer-jobset", "trainer-job"])
def test_components_that_no_overlay_uses_build_too(component: str) -> None:
    assert len(built_with([component])) > len(built_with([]))
