"""What dashboards and alerts may ask for."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry


@pytest.fixture(scope="session")
def registries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[CollectorRegistry]]:
    """What each service shows at its Prometheus port."""
    pytest.importorskip("torch")
    from scripts.prometheus_reference import registries

    return registries(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def known(registries: dict[str, list[CollectorRegistry]]) -> dict[str, set[str]]:
    """Every series that a service shows, and its labels."""
    found: dict[str, set[str]] = {"up": set()}
    for registry in (one for each in registries.values() for one in each):
        found |= {sample.name: set() for one in registry.collect() for sample in one.samples}
        for collector in registry._collector_to_names:
            labels = set(getattr(collector, "_labelnames", ()))
            for name in registry._collector_to_names[collector]:
                found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return found
