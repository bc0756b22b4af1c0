"""Other people's OpenVLA-OFT become checkpoints: what the originals' numbers are of, to the bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from tests.checkpoint_layouts import (  # noqa: E402
    INDEX,
    POINTER,
    beside,
    lay_out,
    pickled,
    sharded,
    then,
    without,
)
from tests.unit.openvla.test_openvla_adoption import adapter, adopt, refused  # noqa: E402
from tests.unit.openvla_oft.oft_golden import CAMERAS, GOLDEN, make_checkpoint  # noqa: E402
from vlarl.errors import ConfigError  # noqa: E402
from vlarl.models import registry  # noqa: E402
from vlarl.models.openvla.family import OpenVLAFamily  # noqa: E402
from vlarl.models.openvla.tensors import stored_tensors  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.openvla.wholeness import check_preparation, check_stored  # noqa: E402
from vlarl.models.openvla_oft.config import OFTConfig  # noqa: E402
from vlarl.models.openvla_oft.network import load_model  # noqa: E402
from vlarl.models.registry import check_policy_checkpoint, policy_family  # noqa: E402
from vlarl.models.spec import PolicySpec  # noqa: E402
from vlarl.weights.checkpoint import CheckpointReader, base_digest  # noqa: E402
from vlarl.weights.folder import CheckpointError  # noqa: E402
from vlarl.weights.wholeness import check_weights  # noqa: E402
from vlarl_cli import app  # noqa: E402

pytestmark = pytest.mark.torch
PROJECTOR = load_file(GOLDEN / "proprio_projector.safetensors")
PLAIN = {key.removeprefix("proprio_projector."): tensor for key, tensor in PROJECTOR.items()}
BESIDE = "proprio_projector--150000_checkpoint.pt"
STOP = ("--convention", "stop")
CHUNK = ("--chunk", "8")
BOTH = ("--camera", CAMERAS[0], "--camera", CAMERAS[1])


class MirroredFamily(OpenVLAFamily):
    """A third family, as docs/extend-policy-family.md makes one."""

    @property
    def spec(self) -> PolicySpec:
        return replace(self.config.spec, family="mirrored")

    def check(self) -> None:
        check_preparation(self.checkpoint, self.config)
        tensors = check_weights(self.checkpoint)
        check_stored(self.checkpoint, "mirrored OpenVLA", stored_tensors(self.config), tensors)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chunked") / "tiny"
    make_tiny_checkpoint(folder, image_size=28, tower_dim=32, tower_depth=2, text_dim=64)
    return folder


def published(folder: Path, prefix: str = "module.") -> Path:
    """As openvla-oft's fine-tuning leaves it: the projector beside the weights, from DDP."""
    folder.mkdir(parents=True)
    for path in GOLDEN.glob("*.json"):
        shutil.copy(path, folder)
    shutil.copy(GOLDEN / "model.safetensors", folder)
    torch.save({prefix + key: one for key, one in PLAIN.items()}, folder / BESIDE)
    return folder


def small(width: int = 8, dim: int = 64) -> dict[str, torch.Tensor]:
    """A projector for the tiny checkpoint, by the names in DDP's file."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"fc1.weight": (dim, width), "fc1.bias": (dim,), "fc2.weight": (dim, dim)}
    shapes["fc2.bias"] = (dim,)
    return {
        f"module.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()
    }


def family(out: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((out / "family.json").read_text())
    return content


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_projector_joins_the_weights_as_the_originals_numbers_have_it(
    tmp_path: Path, prefix: str
) -> None:
    source, out = published(tmp_path / "source", prefix), tmp_path / "out"
    said = adopt(source, str(out), *CHUNK, *STOP, *BOTH)
    whole = make_checkpoint_in(tmp_path / "golden", "stop_img2_proprio")
    assert base_digest(out) == base_digest(whole)
    assert family(out) == json.loads((whole / "family.json").read_text())
    assert "family.json: chunk 8, convention stop, cameras agentview and robot0_eye" in said
    assert "no --camera was given" not in said
    assert not list(out.glob("*.pt"))
    spec = check_policy_checkpoint(out)
    assert (spec.family, spec.chunk, spec.proprio_dim) == ("openvla_oft", 8, 8)
    load_model(out)
    shown = CliRunner().invoke(app, ["checkpoint", "show", str(out)]).output
    assert "family        openvla_oft, chunk 8, convention stop, cameras agentview and" in shown


def make_checkpoint_in(folder: Path, name: str) -> Path:
    folder.mkdir()
    return make_checkpoint(folder, name)


def test_weights_without_parts_get_their_family_alone(tmp_path: Path) -> None:
    source, out = published(tmp_path / "source"), tmp_path / "out"
    (source / BESIDE).unlink()
    said = adopt(source, str(out), *CHUNK, "--convention", "no_stop")
    told = "no --camera was given, so {} sees one image, agentview: if it was trained on several"
    assert told.format(out) in " ".join(said.split())
    whole = make_checkpoint_in(tmp_path / "golden", "nostop_img1")
    assert base_digest(out) == base_digest(whole)
    assert family(out) == {
        **{"family": "openvla_oft", "chunk": 8, "convention": "no_stop"},
        **{"cameras": ["agentview"], "proprio": 0},
    }


def test_a_projector_among_the_weights_says_how_many_numbers_it_reads(
    tmp_path: Path, tiny: Path
) -> None:
    """SimpleVLA-RL's, which reads as many as an action has, and RLinf's critic, which goes."""
    source, out = lay_out(tiny, tmp_path / "source", lambda _: None), tmp_path / "out"
    statistics = json.loads((source / "config.json").read_text())["norm_stats"]["libero_spatial"]
    with_proprio = {"libero_spatial": statistics | {"proprio": statistics["action"]}}
    (source / "dataset_statistics.json").write_text(json.dumps(with_proprio))
    projector = {
        key.replace("module", "proprio_projector"): one for key, one in small(width=7).items()
    }
    critic = {"value_head.mlp.0.weight": torch.zeros(4, 64)}
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | projector | critic, source / "model.safetensors", {"format": "pt"})
    asked = (*CHUNK, *STOP)
    said = refused(source, out, *asked, "--proprio", "8")
    assert "takes 7 numbers, and --proprio says 8: leave it out" in said
    adopt(source, str(out), *asked, "--proprio", "7")
    assert check_policy_checkpoint(out).proprio_dim == 7
    stored = CheckpointReader(out)
    assert set(stored) == tensors.keys() | projector.keys()
    for key, tensor in projector.items():
        assert torch.equal(stored.tensor(key), tensor)
    assert f"{out} can be loaded as it is" in refused(out, tmp_path / "again")
    assert "family.json says already how the policy is used" in refused(
        out, tmp_path / "again", "--chunk", "4"
    )


def test_pickled_weights_and_projector_together(tmp_path: Path, tiny: Path) -> None:
    source, out = lay_out(tiny, tmp_path / "source", beside), tmp_path / "out"
    tensors = load_file(source / "model.safetensors")
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    torch.save(small(), source / BESIDE)
    adopt(source, str(out), *CHUNK, *STOP)
    stored = CheckpointReader(out)
    expected = tensors | {
        key.replace("module", "proprio_projector"): one for key, one in small().items()
    }
    assert set(stored) == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(stored.tensor(key), tensor)


def test_an_adapter_is_merged_and_its_runs_parts_join(tmp_path: Path, tiny: Path) -> None:
    """RUN/lora_adapter, its statistics and its projector in RUN; either folder may be named."""
    run = tmp_path / "run--20_chkpt"
    lay_out(tiny, tmp_path / "tuned", beside)
    run.mkdir()
    shutil.copy(tmp_path / "tuned/dataset_statistics.json", run)
    source, base = adapter(tiny, run / "lora_adapter"), ("--base", str(tiny))
    adopt(adapter(tiny, tmp_path / "alone"), str(tmp_path / "plain"), *base)
    for step in (10, 20, 120):
        torch.save(small(width=step % 100), run / f"proprio_projector--{step}_checkpoint.pt")
    said = refused(run, tmp_path / "out", *CHUNK, *STOP, *base)
    assert "proprio is 20, and dataset_statistics.json has statistics of 8 dim" in said
    torch.save(small(), run / "proprio_projector--20_checkpoint.pt")
    for number, folder in enumerate((run, source)):
        out = tmp_path / f"out{number}"
        adopt(folder, str(out), *CHUNK, *STOP, *base)
        merged, plain = CheckpointReader(out), CheckpointReader(tmp_path / "plain")
        assert set(merged) - set(plain) == {f"proprio_projector.{key}" for key in PLAIN}
        for key in plain:
            assert torch.equal(merged.tensor(key), plain.tensor(key))
        spec = check_policy_checkpoint(out)
        assert (spec.proprio_dim, spec.unnorm_key()) == (8, "libero_spatial_no_noops")
    assert "with --base" in refused(run, tmp_path / "none", *CHUNK, *STOP)
    run.rename(tmp_path / "run")
    said = refused(tmp_path / "run", tmp_path / "none", *CHUNK, *STOP, *base)
    assert "proprio_projector--120_checkpoint.pt, proprio_projector--20" in said
    assert "keep the one of the step that the weights are of" in said
    # A policy that goes on from an OpenVLA-OFT keeps its use.
    adopt(tmp_path / "alone", str(tmp_path / "further"), "--base", str(tmp_path / "out0"))
    assert family(tmp_path / "further") == family(tmp_path / "out0")


@pytest.mark.parametrize(
    ("name", "content", "chunk"),
    [
        ("modeling_prismatic.py", "NUM_ACTIONS_CHUNK = 5  # parallel decoding\n", 5),
        ("constants.py", "A = {'NUM_ACTIONS_CHUNK': 8}\nB = {'NUM_ACTIONS_CHUNK': 25}\n", None),
        ("modeling_prismatic.py", "from constants import NUM_ACTIONS_CHUNK\n", None),
    ],
)
def test_the_chunk_is_the_codes_where_it_names_one(
    tmp_path: Path, tiny: Path, name: str, content: str, chunk: int | None
) -> None:
    source, out = lay_out(tiny, tmp_path / "source", beside), tmp_path / "out"
    (source / name).write_text(content)
    said = refused(source, out)
    assert ("give --chunk, the control steps" in said) is (chunk is None)
    assert "--convention, stop for what openvla-oft or SimpleVLA-RL trained, no_stop" in said
    assert "and --camera NAME for each image that it saw, the main one first" in said
    assert "--camera" not in refused(source, out, *BOTH)
    if chunk is None:
        assert "so give --chunk, the control steps that a pass" in refused(source, out, *STOP)
        adopt(source, str(out), *STOP, *CHUNK)
    else:
        adopt(source, str(out), *STOP)
    assert family(out)["chunk"] == (chunk or 8)


def test_another_familys_adapters_and_weights_are_not_openvla_ofts(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged and converted as they are, whatever their code says of chunks."""
    families: Any = registry.FAMILIES
    monkeypatch.setitem(families, "mirrored", MirroredFamily)
    mirrored = lay_out(tiny, tmp_path / "mirrored", lambda _: None)
    (mirrored / "family.json").write_text('{"family": "mirrored"}')
    source = adapter(tiny, tmp_path / "adapter")
    base = ("--base", str(mirrored))
    adopt(source, str(tmp_path / "merged"), *base)
    said = refused(source, tmp_path / "out", *base, *CHUNK, *STOP)
    assert f"{mirrored} is of the family mirrored, and --chunk, --convention" in said
    assert said.endswith("are OpenVLA-OFT's: leave them out")
    kinds = (("pickled", pickled), ("shards", then(sharded, without(INDEX))))
    for name, layout in kinds:
        folder = lay_out(mirrored, tmp_path / name, layout)
        (folder / "constants.py").write_text("NUM_ACTIONS_CHUNK = 8\n")
        adopt(folder, str(tmp_path / f"{name}-out"))
        assert base_digest(tmp_path / f"{name}-out") == base_digest(mirrored)
    for name in ("merged", "pickled-out", "shards-out"):
        assert family(tmp_path / name) == {"family": "mirrored"}
        assert check_policy_checkpoint(tmp_path / name).family == "mirrored"


def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, tiny: Path) -> None:
    source, out = lay_out(tiny, tmp_path / "source", beside), tmp_path / "out"
    asked = (*CHUNK, *STOP)
    for name, reason in (
        ("action_head--150000_checkpoint.pt", "have no log-probs: take a checkpoint that was"),
        ("noisy_action_projector--1_checkpoint.pt", "by L1 regression or diffusion"),
        ("vision_backbone--150000_checkpoint.pt", "changed by the words (FiLM), which isn't"),
    ):
        torch.save(small(), source / name)
        for options in ((), asked):
            assert reason in refused(source, out, *options)
        (source / name).unlink()
    (source / BESIDE).write_text(POINTER)
    assert f"{BESIDE} is a Git LFS pointer" in refused(source, out, *asked)
    torch.save({"module.fc1.weight": torch.zeros(8, 8)}, source / BESIDE)
    said = refused(source, out, *asked)
    assert f"{BESIDE} is no projector of proprioception, whose weights are fc1.bias, fc1" in said
    torch.save(small(dim=32), source / BESIDE)
    assert "proprio_projector.fc1.weight is [32, 8], by config.json [64, 8]" in refused(
        source, out, *asked
    )
    torch.save(small(), source / BESIDE)
    assert "is no adapter" in refused(source, out, *asked, "--base", str(tiny))
    said = refused(source, out, *asked, "--chunk", "300")
    assert f"error: {source}: a pass has up to " in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OFTConfig, "placeholder_id", 832)
        said = refused(source, out, *asked)
    assert f"error: {source}: placeholders are the id after pad_token_id" in said
    statistics = json.loads((source / "dataset_statistics.json").read_text())
    del statistics["libero_spatial_no_noops"]["proprio"]
    (source / "dataset_statistics.json").write_text(json.dumps(statistics))
    said = refused(source, out, *asked)
    assert f"{source}/dataset_statistics.json: proprio statistics of 'libero_spatial_no_" in said
    assert "take the dataset_statistics.json of its fine-tuning run" in said
    (source / BESIDE).unlink()
    assert "(proprio_projector.*, or proprio_projector--*) is missing, and --proprio" in refused(
        source, out, *asked, "--proprio", "8"
    )
    tensors = load_file(source / "model.safetensors")
    head = {"action_head.fc1.weight": torch.zeros(2, 2)}
    save_file(tensors | head, source / "model.safetensors", {"format": "pt"})
    assert "it has action_head.fc1.weight, and its actions are numbers" in refused(
        source, out, *asked
    )


def test_a_family_written_by_hand_needs_its_parts_too(tmp_path: Path, tiny: Path) -> None:
    source, out = lay_out(tiny, tmp_path / "source", beside), tmp_path / "out"
    table = {"family": "openvla_oft", "chunk": 8, "convention": "stop"}
    (source / "family.json").write_text(json.dumps(table))
    torch.save(small(), source / BESIDE)
    with pytest.raises(ConfigError, match=rf"names no proprio, and .* with it \({BESIDE}\): write"):
        check_policy_checkpoint(source)
    (source / "family.json").write_text(json.dumps(table | {"proprio": 8}))
    with pytest.raises(CheckpointError, match=rf"{BESIDE}, which .* adopt {source} OUT` puts it"):
        check_policy_checkpoint(source)
    adopt(source, str(out))
    assert family(out) == table | {"proprio": 8}
    (out / "action_head--1_checkpoint.pt").touch()
    with pytest.raises(ConfigError, match="have no log-probs"):
        check_policy_checkpoint(out)


def test_family_json_names_the_family(tmp_path: Path, tiny: Path) -> None:
    folder = lay_out(tiny, tmp_path / "it", beside)
    path = folder / "family.json"
    for content, said in (
        ('{"family": "pi0_fast"}', r"family is 'pi0_fast'; known: openvla, openvla_oft$"),
        ("{}", r"family is ''; known: openvla, openvla_oft$"),
        ("[]", "is not a JSON object"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=said):
            policy_family(folder)
        assert str(path) in refused(folder, tmp_path / "out", *CHUNK, *STOP)
    path.write_text('{"family": "openvla"}')
    assert check_policy_checkpoint(folder).family == "openvla"
    (folder / BESIDE).touch()
    with pytest.raises(ConfigError, match=rf"is OpenVLA-OFT \({BESIDE}\)"):
        check_policy_checkpoint(folder)


def test_a_checkpoint_of_the_hub_is_known_by_its_name(tmp_path: Path, tiny: Path) -> None:
    for model, known in (
        ("Haozhan72--Openvla-oft-SFT-libero10-trajall", True),
        ("RLinf--RLinf-OpenVLAOFT-LIBERO-90-Base-Lora", True),
        ("someone--openvla-soft-gripper", False),
    ):
        folder = tmp_path / f"models--{model}/snapshots/0123"
        lay_out(tiny, folder, lambda _: None)
        if not known:
            check_policy_checkpoint(folder)
            continue
        with pytest.raises(ConfigError, match=r"is OpenVLA-OFT \(by the name .* --convention stop"):
            check_policy_checkpoint(folder)
        adopt(folder, str(tmp_path / model), *CHUNK, *STOP)
        check_policy_checkpoint(tmp_path / model)
