import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.oft import oft_sign
from vlarl.models.registry import is_openvla
from vlarl.weights.folder import reward_model_version

GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


def _checkpoint(directory: Path, **changes: object) -> Path:
    """The golden configuration with some keys changed; None removes a key."""
    raw = json.loads((GOLDEN / "config.json").read_text()) | changes
    kept = {key: value for key, value in raw.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def _libero_only() -> dict[str, Any]:
    norm_stats = json.loads((GOLDEN / "config.json").read_text())["norm_stats"]
    return {"libero_spatial": norm_stats["libero_spatial_no_noops"]}


def test_a_published_checkpoint_has_the_full_size(tmp_path: Path) -> None:
    text = {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}
    config = OpenVLAConfig.from_directory(
        _checkpoint(tmp_path, timm_model_kwargs=None, text_config=text, pad_token_id=32000)
    )
    dino, siglip = config.towers
    assert (dino.embed_dim, dino.depth, dino.mlp_hidden, dino.reg_tokens) == (1024, 24, 4096, 4)
    assert (siglip.embed_dim, siglip.depth, siglip.mlp_hidden) == (1152, 27, 4304)
    assert config.num_patches == 256
    assert config.spec.action_ids == range(31744, 32000)
    assert (config.text.hidden_size, config.text.num_hidden_layers) == (4096, 32)
    assert config.text.rms_norm_eps == 1e-6


def test_towers_take_the_sizes_of_timm_model_kwargs() -> None:
    config = OpenVLAConfig.from_directory(GOLDEN)
    assert [(tower.embed_dim, tower.depth) for tower in config.towers] == [(48, 4), (72, 3)]
    assert config.towers[1].mlp_hidden == 269
    assert config.spec.action_dim == 7


def test_a_suite_finds_its_statistics(tmp_path: Path) -> None:
    config = OpenVLAConfig.from_directory(GOLDEN)
    assert config.spec.unnorm_key("libero_spatial") == "libero_spatial_no_noops"
    assert config.spec.unnorm_key("bridge_orig") == "bridge_orig"
    with pytest.raises(ConfigError, match="bridge_orig, libero_spatial_no_noops"):
        config.spec.unnorm_key("libero_goal")
    with pytest.raises(ConfigError, match="several datasets' statistics; name one: "):
        config.spec.unnorm_key()
    alone = OpenVLAConfig.from_directory(_checkpoint(tmp_path, norm_stats=_libero_only()))
    assert alone.spec.unnorm_key() == "libero_spatial"


def test_statistics_beside_the_checkpoint_win(tmp_path: Path) -> None:
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(_libero_only()))
    assert set(OpenVLAConfig.from_directory(_checkpoint(tmp_path)).spec.norm_stats) == {
        "libero_spatial"
    }


def test_the_centre_crop_follows_the_training_data_unless_set(tmp_path: Path) -> None:
    assert not OpenVLAConfig.from_directory(GOLDEN).spec.center_crop
    fine_tuned = _checkpoint(tmp_path, norm_stats=_libero_only())
    assert OpenVLAConfig.from_directory(fine_tuned).spec.center_crop
    explicit = _checkpoint(tmp_path, norm_stats=_libero_only(), center_crop=False)
    assert not OpenVLAConfig.from_directory(explicit).spec.center_crop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, "model_type"),
        ({"n_action_bins": 128}, "n_action_bins"),
        ({"text_config": None}, "'text_config' is missing"),
        ({"text_config": {"model_type": "mistral"}}, "not a Llama"),
        ({"text_config": {"rope_scaling": {"factor": 2}}}, "rope_scaling"),
        ({"text_config": {"rope_parameters": {"rope_type": "llama3"}}}, "rope_scaling"),
        ({"text_config": {"attention_bias": True}}, "biases"),
        ({"text_config": {"head_dim": 64}}, "head_dim"),
        ({"timm_model_ids": ["vit_tiny", "vit_tiny"]}, "unknown tower 'vit_tiny'"),
        ({"timm_model_kwargs": [{"width": 3}, {}]}, "unknown timm_model_kwargs: width"),
        ({"image_sizes": [84, 224]}, "same image size"),
        ({"image_sizes": [100, 100]}, "impossible size"),
        ({"norm_stats": {}}, "norm_stats"),
        ({"norm_stats": []}, "norm_stats"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenVLAConfig.from_directory(_checkpoint(tmp_path, **changes))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        OpenVLAConfig.from_directory(tmp_path)
    shutil.copy(GOLDEN / "config.json", tmp_path)
    (tmp_path / "dataset_statistics.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dataset_statistics\.json"):
        OpenVLAConfig.from_directory(tmp_path)


def test_a_folder_that_may_not_be_looked_into_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is one whose name no file system takes."""
    long = tmp_path / ("x" * 300)
    readers = (OpenVLAConfig.from_directory, is_openvla, reward_model_version)
    for read in readers:
        with pytest.raises(ConfigError, match=f"^{long} can't be looked at \\(File name too long"):
            read(long)
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.R_OK)
    for read in readers:
        with pytest.raises(ConfigError, match="may not be entered and listed by this user"):
            read(_checkpoint(tmp_path))


def test_code_that_can_not_be_read_may_be_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modeling.py").touch()
    assert oft_sign(tmp_path, {}) == ""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"modeling.py: can't be read \(Permission denied"):
        oft_sign(tmp_path, {})
