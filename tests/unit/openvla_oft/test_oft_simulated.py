"""What a policy needs of the simulators is looked at before any is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="runs in the torch environment (.venv)")

from tests.unit.openvla_oft.oft_golden import CAMERAS, GOLDEN, write_settings
from vlarl.config import ConfigError, RunConfig
from vlarl.models.meaning import chosen_unnorm_key
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.simulated import check_simulated
from vlarl.models.spec import PolicySpec

pytestmark = pytest.mark.torch


def policy(folder: Path, **family: Any) -> PolicySpec:  # noqa: ANN401 - any JSON
    return OFTConfig.from_directory(write_settings(folder, **family)).spec


def run(cameras: tuple[str, ...] | None = None, **keys: object) -> RunConfig:
    """A run's configuration; cameras are set without the default's help."""
    nested: dict[str, dict[str, object]] = {}
    for key, value in keys.items():
        section, _, name = key.partition("__")
        nested.setdefault(section, {})[name] = value
    config = RunConfig.model_validate(nested)
    return config.model_copy(update={"env": config.env.model_copy(update={"cameras": cameras})})


def test_what_libero_has_is_taken(tmp_path: Path) -> None:
    model = policy(tmp_path, cameras=CAMERAS, proprio=8)
    check_simulated(run(), model)
    check_simulated(run(("frontview", "sideview", "birdview")), model)
    check_simulated(run(tasks__max_actions=8), model)
    check_simulated(run(tasks__suite="mine"), model, limit=8)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        (
            {"cameras": ["agentview", "wrist"]},
            {},
            r"sees the camera 'wrist', which LIBERO's scenes lack: .*robot0_eye_in_hand",
        ),
        (
            {"cameras": CAMERAS},
            {"cameras": ("agentview", "hand")},
            "^env.cameras names the camera 'hand', which LIBERO's scenes lack",
        ),
        (
            {"cameras": CAMERAS},
            {"cameras": ("agentview",)},
            r"sees 2 cameras \(agentview, robot0_eye_in_hand\), and env.cameras names 1",
        ),
        (
            {},
            {"tasks__max_actions": 7},
            "8 actions at once, .* ends after 7: set tasks.max_actions to 8 at least",
        ),
        (
            {},
            {"tasks__max_actions": 7, "env__action_repeat": 2},
            "last 16 control steps, .* ends after 14: set tasks.max_actions to 8",
        ),
        (
            {"chunk": 120},
            {"env__action_repeat": 2},
            "last 240 control steps, and an episode of libero_spatial ends after 220: set env.act",
        ),
    ],
)
def test_what_it_lacks_is_said_with_a_way_out(
    tmp_path: Path, family: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_simulated(run(**keys), policy(tmp_path, **family))


def test_a_suite_of_ones_own_has_its_own_limit(tmp_path: Path) -> None:
    config = run(tasks__suite="mine")
    check_simulated(config, policy(tmp_path))
    with pytest.raises(ConfigError, match=r"of mine ends after 7: set tasks\.max_actions, or"):
        check_simulated(config, policy(tmp_path), limit=7)


def test_statistics_of_another_robot_are_refused(tmp_path: Path) -> None:
    statistics = json.loads((GOLDEN / "dataset_statistics.json").read_text())
    for part in ("action", "proprio"):
        table = statistics["libero_spatial_no_noops"][part]
        width = len(table["q01"]) - 1
        statistics["libero_spatial_no_noops"][part] = {
            key: value[:width] for key, value in table.items() if isinstance(value, list)
        }
    write_settings(tmp_path, proprio=7)
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(statistics))
    model = OFTConfig.from_directory(tmp_path).spec
    with pytest.raises(ConfigError, match=r"reads 7 numbers of proprioception, and .* has 8: take"):
        check_simulated(run(), model)
    with pytest.raises(ConfigError, match="have 6 dimensions, and the simulated arm takes 7"):
        chosen_unnorm_key(run(), model)
