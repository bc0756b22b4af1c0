from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.openvla_oft.oft_golden import CAMERAS, GOLDEN, write_settings
from vlarl.errors import ConfigError
from vlarl.models.openvla.oft import oft_sign
from vlarl.models.openvla_oft.config import OFTConfig


def _change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_left_out_is_one_image_and_no_proprioception(tmp_path: Path) -> None:
    config = OFTConfig.from_directory(write_settings(tmp_path))
    assert (config.spec.chunk, config.spec.tokens, config.convention) == (8, 56, "stop")
    assert (config.spec.cameras, config.spec.proprio_dim) == (("agentview",), 0)
    assert config.num_patches == 256
    assert config.longest_sequence == 256 + 240 + 56 + 1
    assert config.spec.unnorm_key() == "libero_spatial_no_noops"
    assert config.action_tokenizer.action_ids == range(768, 1024)


def test_family_json_says_the_rest(tmp_path: Path) -> None:
    write_settings(tmp_path, chunk=5, convention="no_stop", cameras=CAMERAS, proprio=8)
    config = OFTConfig.from_directory(tmp_path)
    assert (config.spec.chunk, config.spec.tokens, config.convention) == (5, 35, "no_stop")
    assert (config.spec.cameras, config.spec.proprio_dim) == (tuple(CAMERAS), 8)
    assert config.num_patches == 512
    assert config.longest_sequence == 512 + 240 + 35 + 1
    assert config.spec.proprio_stats["libero_spatial_no_noops"].q99[2] == 0.2269


@pytest.mark.parametrize(("convention", "cropped"), [("stop", True), ("no_stop", False)])
def test_the_centre_crop_is_the_conventions_unless_set(
    tmp_path: Path, convention: str, cropped: bool
) -> None:
    write_settings(tmp_path, convention=convention)
    assert OFTConfig.from_directory(tmp_path).spec.center_crop is cropped
    _change(tmp_path / "config.json", center_crop=not cropped)
    assert OFTConfig.from_directory(tmp_path).spec.center_crop is not cropped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": None}, r"chunk is missing: the number of control steps .* \(LIBERO: 8"),
        ({"chunk": 0}, "chunk is 0; write a whole number of at least 1"),
        ({"chunk": "8"}, "chunk is '8'; write a whole number"),
        ({"chunk": True}, "chunk is True; write a whole number"),
        (
            {"chunk": 300},
            "a pass has up to 2597 tokens, 256 of images and 2100 of .* takes 2048:",
        ),
        ({"convention": "rlinf"}, 'convention is \'rlinf\'; write "stop" for .* "no_stop" for'),
        ({"convention": None}, "convention is None; write"),
        ({"cameras": []}, r"cameras is \[\]; list each camera's name once"),
        ({"cameras": "agentview"}, "cameras is 'agentview'; list each"),
        ({"cameras": ["a", "a"]}, r"cameras is \['a', 'a'\]; list each camera's name once"),
        ({"proprio": -1}, "proprio is -1; write a whole number of at least 0"),
        ({"proprio": 7}, r"proprio is 7, and dataset_statistics\.json has statistics of 8"),
        ({"family": "openvla"}, "family is 'openvla'; write \"openvla_oft\""),
        ({"chunks": 8}, "unknown key 'chunks'; did you mean 'chunk'"),
        ({"zzz": 8}, "unknown key 'zzz'; known: family, chunk, convention, cameras, proprio"),
    ],
)
def test_a_family_that_cannot_be_used_says_why(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_settings(tmp_path, **changes)
    with pytest.raises(ConfigError, match=rf"family\.json: {message}"):
        OFTConfig.from_directory(tmp_path)


def test_missing_files_and_statistics_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"family\.json is missing: config\.json doesn't say how"):
        OFTConfig.from_directory(GOLDEN)
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        OFTConfig.from_directory(tmp_path)
    write_settings(tmp_path, proprio=8)
    statistics = json.loads((tmp_path / "dataset_statistics.json").read_text())
    del statistics["libero_spatial_no_noops"]["proprio"]
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(statistics))
    missing = "proprio statistics of 'libero_spatial_no_noops': 'proprio' is missing"
    with pytest.raises(ConfigError, match=missing):
        OFTConfig.from_directory(tmp_path)
    _change(tmp_path / "family.json", proprio=0)
    assert OFTConfig.from_directory(tmp_path).spec.proprio_dim == 0


def test_family_json_keeps_a_checkpoint_from_being_run_as_openvla(tmp_path: Path) -> None:
    write_settings(tmp_path)
    assert oft_sign(tmp_path, {}) == "family.json"
    _change(tmp_path / "family.json", family="mirrored")
    assert oft_sign(tmp_path, {"num_actions_chunk": 8}) == ""
    (tmp_path / "family.json").unlink()
    assert oft_sign(tmp_path, {}) == ""
