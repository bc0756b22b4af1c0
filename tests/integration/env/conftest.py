"""What several tests of simulators need."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl_env.simulators.libero.suites import SHIPPED_SUITES


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of one task: two bowls in a region of a centimetre."""
    folder = tmp_path_factory.mktemp("crowded")
    (reach,) = SHIPPED_SUITES["reach"].glob("*.bddl")
    region = "main_table_bowl_region)"
    scene = (
        reach.read_text("utf-8")
        .replace("akita_black_bowl_1 -", "akita_black_bowl_1 akita_black_bowl_2 -")
        .replace(region, f"{region} (On akita_black_bowl_2 {region}")
        .replace("-0.065 -0.075 0.065 0.075", "0.0 0.0 0.01 0.01")
    )
    (folder / "crowd.bddl").write_text(scene, "utf-8")
    return folder
