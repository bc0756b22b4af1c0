"""Custom resources against the schemas of their own definitions, as others' packages have them."""

from __future__ import annotations

from functools import cache

import pytest
import yaml

from tests.unit.deploy.tools import OVERLAYS, Object, built, built_with

jsonschema = pytest.importorskip("jsonschema")

MODELS = {
    "keda.sh/v1alpha1": ("cloudcoil.models.keda.v1alpha1", ""),
    "monitoring.coreos.com/v1": ("cloudcoil.models.prometheus_operator.v1", ""),
    "trainer.kubeflow.org/v1alpha1": ("kubeflow_trainer_api.models", "TrainerV1alpha1"),
    "jobset.x-k8s.io/v1alpha2": ("kubeflow_trainer_api.models", "JobsetV1alpha2"),
}
"""Where models generated from the definitions are: module, and prefix of the class of a kind."""


def complaint(one: Object) -> str | None:
    """What the schema of an object's kind has against it."""
    found = jsonschema.Draft202012Validator(schema_of(one["apiVersion"], one["kind"]))
    worst = jsonschema.exceptions.best_match(found.iter_errors(one))
    return worst and f"{worst.json_path}: {worst.message}"


@cache
def schema_of(version: str, kind: str) -> Object:
    module, prefix = MODELS[version]
    models = pytest.importorskip(module, reason="requirements/dev.txt has it")
    schema: Object = getattr(models, prefix + kind).model_json_schema(by_alias=True)
    for name, definition in schema["$defs"].items():
        if name.endswith(("ResourceQuantity", "IntOrString")):  # the models have no scalars
            definition.clear()
            definition["type"] = ["string", "integer"]
    forbid_others(schema)
    return schema


def forbid_others(schema: object) -> None:
    """Makes every field that a schema doesn't name an error; API servers only drop them."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            forbid_others(one)


def everything() -> list[Object]:
    objects = [one for overlay in OVERLAYS for one in built(overlay)]
    objects += built_with(["trainer-jobset"])
    return [one for one in objects if one["apiVersion"] in MODELS]


def test_objects_follow_their_schemas() -> None:
    assert {one["kind"]: complaint(one) for one in everything()} == dict.fromkeys(
        (
            *("JobSet", "ScaledObject", "ServiceMonitor"),
            *("TrainJob", "TrainingRuntime", "TriggerAuthentication"),
        )
    )


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("ScaledObject", "pollingInterval", "pollInterval"),
        ("ServiceMonitor", "endpoints", "endpoint"),
        ("TrainJob", "runtimeRef", "runtimeReference"),
        ("TrainingRuntime", "numNodes", "nodes"),
        ("JobSet", "maxRestarts", "maximumRestarts"),
    ],
)
def test_a_misspelt_field_would_be_noticed(kind: str, right: str, wrong: str) -> None:
    one = next(one for one in everything() if one["kind"] == kind)
    text = yaml.safe_dump(one)
    assert f"{right}:" in text
    said = complaint(yaml.safe_load(text.replace(f"{right}:", f"{wrong}:")))
    assert said is not None
    assert wrong in said or right in said
