"""What is whole is taken, in whatever layout; what isn't is refused with its file and a way out."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from tests.checkpoint_layouts import BROKEN, KEY, WHOLE, lay_out  # noqa: E402
from vlarl.errors import (  # noqa: E402
    ConfigError,
    FatalError,
)
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.network import OpenVLA, load_model  # noqa: E402
from vlarl.models.openvla.tensors import stored_tensors  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.openvla.wholeness import check_openvla  # noqa: E402
from vlarl.models.registry import check_any, check_reward_model  # noqa: E402
from vlarl.weights.folder import CheckpointError  # noqa: E402
from vlarl.weights.headers import read_header  # noqa: E402

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "tiny"
    make_tiny_checkpoint(folder, image_size=28, tower_dim=32, tower_depth=2, text_dim=64)
    return folder


@pytest.mark.parametrize("layout", WHOLE)
def test_a_whole_checkpoint_is_taken_and_loads(tmp_path: Path, tiny: Path, layout: str) -> None:
    folder = lay_out(tiny, tmp_path / "it", WHOLE[layout])
    assert check_openvla(folder).spec.action_dim == (8 if layout == "eight dimensions" else 7)
    load_model(folder)


@pytest.mark.parametrize("layout", BROKEN)
def test_a_broken_one_is_refused_with_its_file_and_a_way_out(
    tmp_path: Path, tiny: Path, layout: str
) -> None:
    change, said = BROKEN[layout]
    folder = lay_out(tiny, tmp_path / "it", change)
    with pytest.raises(FatalError) as refused:
        check_openvla(folder)
    for part in said:
        assert part.replace("{}", str(folder)) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_names_and_shapes_are_those_of_the_model(tmp_path: Path) -> None:
    raw = json.loads((GOLDEN / "config.json").read_text())
    one_tower = {
        "timm_model_ids": raw["timm_model_ids"][:1],
        "timm_model_kwargs": raw["timm_model_kwargs"][:1],
        "image_sizes": raw["image_sizes"][:1],
    }
    grouped = {"text_config": raw["text_config"] | {"num_key_value_heads": 1}}
    full = {"timm_model_kwargs": None, "text_config": {"model_type": "llama", "vocab_size": 32064}}
    for changes in ({}, one_tower, grouped, full):
        (tmp_path / "config.json").write_text(json.dumps(raw | changes))
        config = OpenVLAConfig.from_directory(tmp_path)
        with torch.device("meta"):
            model = OpenVLA(config).state_dict()
        assert stored_tensors(config) == {key: tuple(one.shape) for key, one in model.items()}


def test_a_header_says_what_the_library_reads(tiny: Path) -> None:
    from safetensors import safe_open

    header = read_header(tiny / "model.safetensors")
    with safe_open(tiny / "model.safetensors", framework="pt") as opened:
        assert set(header) == set(opened.keys())
        for key, one in header.items():
            assert list(one.shape) == opened.get_slice(key).get_shape()
            assert one.dtype == opened.get_slice(key).get_dtype()


def test_neither_torch_nor_a_tensor_is_needed_to_look(tiny: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from vlarl.models.openvla.wholeness import check_openvla; "
        f"check_openvla(Path({str(tiny)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("here/openvla-7b", "; here/openvla-7b@main would be a name on the hub"),
        ("checkpoints/tiny", "vlarl checkpoint tiny DIR` makes an"),
        ("here/openvla-7b", "vlarl checkpoint tiny DIR` makes an"),
        ("/nowhere/openvla-7b", "vlarl checkpoint tiny DIR` makes an"),
        ("here/model.safetensors", "is a file: name the folder"),
    ],
)
def test_a_path_that_is_no_folder(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    for check in (check_openvla, check_any, check_reward_model):
        with pytest.raises(ConfigError) as refused:
            check(Path(name))
        assert said in str(refused.value)


def test_in_the_hubs_cache_a_model_has_its_own_name(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--openvla--openvla-v01-7b"
    config = check_openvla(lay_out(tiny, model / "snapshots/bbbb", lambda _: None))
    assert (config.spec.name, config.vicuna_prompt) == ("openvla-v01-7b", True)


def test_statistics_and_crop_that_are_used_are_told(tmp_path: Path, tiny: Path) -> None:
    def usage(layout: str, key: str | None = None, center_crop: bool | None = None) -> str:
        folder = lay_out(tiny, tmp_path / str(len(list(tmp_path.iterdir()))), WHOLE[layout])
        return check_openvla(folder).spec.usage(key, center_crop)

    assert usage("the base's statistics in config.json") == (
        f"actions in the units of {KEY} (dataset_statistics.json); centre crop on (guessed, as all "
        "of these statistics are of LIBERO; policy.center_crop decides)"
    )
    assert usage("the base's and the suite's together", KEY) == (
        f"actions in the units of {KEY}, one of 2: bridge_orig, {KEY} (config.json); centre crop "
        "off (guessed, as not all of these statistics are of LIBERO; policy.center_crop decides)"
    )
    assert usage("as it was made", "libero_10").endswith("centre crop off (as the checkpoint says)")
    assert usage("no mask", center_crop=True) == (
        "actions in the units of my_robot (config.json); centre crop on (as the configuration says)"
    )


def test_a_model_of_another_kind_needs_whole_weights_alone(tmp_path: Path, tiny: Path) -> None:
    for layout in ("git lfs", "cut", "a shard missing", "pickled", "index missing"):
        change, said = BROKEN[layout]
        folder = lay_out(tiny, tmp_path / layout, change)
        (folder / "config.json").write_text('{"model_type": "llava"}')
        with pytest.raises(CheckpointError) as refused:
            check_any(folder)
        assert said[0].replace("{}", str(folder)) in str(refused.value)
    folder = lay_out(tiny, tmp_path / "whole", lambda _: None)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    check_any(folder)
    with pytest.raises(ConfigError, match=r"is no reward model \(reward_model.json is missing\)"):
        check_reward_model(folder)
    (folder / "reward_model.json").write_text('{"version": "1"}')
    with pytest.raises(ConfigError, match="is no reward model: policy/, which says"):
        check_reward_model(folder)


def test_fifteen_gigabytes_are_not_read(tmp_path: Path, tiny: Path) -> None:
    """A full-size checkpoint whose weights are a hole in the disk."""
    folder = lay_out(tiny, tmp_path / "full", lambda _: None)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"timm_model_kwargs": None, "image_sizes": [224, 224], "pad_token_id": 32000}
    raw["text_config"] = {"model_type": "llama", "vocab_size": 32064}
    (folder / "config.json").write_text(json.dumps(raw))
    header, end = {}, 0
    for key, shape in stored_tensors(OpenVLAConfig.from_directory(folder)).items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    assert end == 2 * 7_541_237_184
    encoded = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, 8 + len(encoded) + end)
    check_openvla(folder)
    os.truncate(path, 8 + len(encoded) + end - 1)
    with pytest.raises(CheckpointError, match="is cut short: it has 15,08"):
        check_openvla(folder)
