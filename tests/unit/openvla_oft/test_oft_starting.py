"""Beginnings of an OpenVLA-OFT: what is new, and what stays an OpenVLA's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

import torch
from typer.testing import CliRunner

from vlarl.errors import ConfigError
from vlarl.models.openvla.tiny import make_tiny_checkpoint, tiny_config
from vlarl.models.openvla_oft.starting import (
    begin_oft,
    check_beginning,
    make_tiny_oft_checkpoint,
)
from vlarl.models.registry import check_policy_checkpoint, policy_family
from vlarl.weights.checkpoint import CheckpointReader
from vlarl_cli import app

pytestmark = pytest.mark.torch
SIZES = {"image_size": 28, "tower_dim": 32, "tower_depth": 2, "text_dim": 64, "text_layers": 1}
CAMERAS = ("agentview", "robot0_eye_in_hand")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_tiny_one_is_a_tiny_openvla_with_a_projector(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_tiny_oft_checkpoint(tmp_path / name, 3, cameras=CAMERAS, proprio=8, **SIZES)
    assert files(tmp_path / "one") == files(tmp_path / "other")
    spec = check_policy_checkpoint(tmp_path / "one")
    assert (spec.family, spec.chunk, spec.cameras, spec.proprio_dim, spec.tokens) == (
        "openvla_oft",
        8,
        CAMERAS,
        8,
        56,
    )
    make_tiny_checkpoint(tmp_path / "plain", 3, **SIZES)
    plain, ours = (CheckpointReader(tmp_path / name) for name in ("plain", "one"))
    assert all(torch.equal(plain.tensor(key), ours.tensor(key)) for key in plain)
    assert {*ours} - {*plain} == {
        f"proprio_projector.{layer}.{part}"
        for layer in ("fc1", "fc2")
        for part in ("weight", "bias")
    }


def test_statistics_that_fit_stay(tmp_path: Path) -> None:
    """As openvla-oft's scripts write them for OpenVLA, too: beside the configuration."""
    folder = tmp_path / "it"
    make_tiny_checkpoint(folder, **SIZES)
    action = json.loads((folder / "config.json").read_text())["norm_stats"]["libero_goal"]
    known = {"q01": [-2.0] * 8, "q99": [2.0] * 8}
    narrow = {"q01": [-2.0] * 7, "q99": [2.0] * 7}
    stored = {"a": action | {"proprio": known}, "b": action | {"proprio": narrow}, "c": action}
    (folder / "dataset_statistics.json").write_text(json.dumps(stored))
    reader = CheckpointReader(folder)
    tensors = [(key, reader.tensor(key).clone()) for key in reader]
    begin_oft(folder, tensors, 0, chunk=2, convention="no_stop", cameras=CAMERAS, proprio=8)
    stats = policy_family(folder).spec.proprio_stats
    assert stats["a"].q99.tolist() == [2.0] * 8
    assert stats["b"].q99.tolist() == stats["c"].q99.tolist()
    assert stats["b"].q99.tolist() != [2.0] * 8
    check_policy_checkpoint(folder)


def test_a_model_that_has_no_room_cannot_become_one() -> None:
    base = tiny_config(**SIZES)
    use: dict[str, Any] = {"convention": "stop", "cameras": CAMERAS, "proprio": 8}
    # Two images of four patches, 240 of prompt, proprioception, stop, and 7 tokens an action.
    check_beginning(base, chunk=(2048 - 8 - 240 - 2) // 7, **use)
    with pytest.raises(ConfigError, match="a pass has up to 2049 tokens, 8 of images and 1799 of"):
        check_beginning(base, chunk=257, **use)
    full = replace(base, text=replace(base.text, vocab_size=base.pad_token_id + 1))
    with pytest.raises(ConfigError, match=r"tiny: placeholders .* lm_head a row more"):
        check_beginning(full, chunk=2, **use)


def test_the_command_makes_one(tmp_path: Path) -> None:
    def tiny(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["checkpoint", "tiny", *options])
        return done.exit_code, done.output

    cameras = [word for camera in CAMERAS for word in ("--camera", camera)]
    code, said = tiny(
        str(tmp_path / "it"), "--family", "openvla_oft", "--chunk", "5", *cameras, "--proprio", "8"
    )
    assert code == 0, said
    assert "an untrained OpenVLA-OFT of 1," in said
    spec = check_policy_checkpoint(tmp_path / "it")
    assert (spec.chunk, spec.cameras, spec.proprio_dim) == (5, CAMERAS, 8)
    again = str(tmp_path / "again")
    for wrong, reason in (
        (("--chunk", "5000"), "and the language model takes 2048: take a smaller chunk or fewer"),
        (("--camera", "a", "--camera", "a"), "list each camera's name once"),
    ):
        code, said = tiny(again, "--family", "openvla_oft", *wrong)
        assert (code, reason in said) == (1, True), said
        assert not Path(again).exists(), "the corrected command finds no folder in its way"
    code, said = tiny(again, "--family", "openvla_oft", "--chunk", "200")
    assert code == 0, said
    code, said = tiny(str(tmp_path / "plain"), "--chunk", "5")
    assert code == 1
    assert "are for --family openvla_oft" in said
