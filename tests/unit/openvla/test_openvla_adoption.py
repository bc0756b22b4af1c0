"""Other people's folders become checkpoints: same names, same values, or nothing at all."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft", reason="runs in the torch environment (.venv)")

from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from tests.checkpoint_layouts import (  # noqa: E402
    BROKEN,
    POINTER,
    WEIGHTS,
    adapter_alone,
    beside,
    lay_out,
    pickled,
)
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.network import load_model  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.openvla.wholeness import check_openvla  # noqa: E402
from vlarl.weights.checkpoint import CheckpointReader, base_digest  # noqa: E402
from vlarl_cli import app  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adoption") / "tiny"
    make_tiny_checkpoint(folder, image_size=28, tower_dim=32, tower_depth=2, text_dim=64)
    return folder


def adopt(source: Path, *options: str) -> str:
    """What the command says of what it made of a folder."""
    done = CliRunner().invoke(app, ["checkpoint", "adopt", str(source), *options])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(source: Path, out: Path, *options: str) -> str:
    """The one sentence; nothing may be left."""
    before = set(out.parent.iterdir())
    ended = CliRunner().invoke(app, ["checkpoint", "adopt", str(source), str(out), *options])
    assert ended.exit_code == 1, (ended.output, ended.exception)
    assert set(out.parent.iterdir()) == before
    said = ended.output.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "Traceback" not in ended.output
    return said


def pickled_shards(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    keys = sorted(tensors)
    names = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    for number, name in enumerate(names):
        torch.save({key: tensors[key] for key in keys[number::2]}, folder / name)
    named = {key: names[place % 2] for place, key in enumerate(keys)}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": named}))
    (folder / WEIGHTS).unlink()


def legacy(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / WEIGHTS).unlink()


def views(folder: Path) -> None:
    """Tensors that share their memory, as tied and sliced ones do."""
    tensors = load_file(folder / WEIGHTS)
    for key, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[key] = torch.cat([tensor, tensor])[: len(tensor)].t().contiguous().t()
    ones = torch.ones(64)
    for key in tensors:
        if key.endswith("layernorm.weight"):
            assert torch.equal(tensors[key], ones)
            tensors[key] = ones
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("layout", [pickled, pickled_shards, legacy, views])
def test_pickled_weights_become_the_same_in_safetensors(
    layout: object, tmp_path: Path, tiny: Path
) -> None:
    source, out = lay_out(tiny, tmp_path / "source", layout), tmp_path / "out"
    (source / "training_args.bin").write_bytes(b"never read")
    said = adopt(source, str(out))
    assert f"{out}: " in said
    check_openvla(out)
    load_model(out)
    assert base_digest(out) == base_digest(tiny)
    assert {path.name for path in out.iterdir()} == {path.name for path in tiny.iterdir()}
    assert not list(tmp_path.glob(".*"))


def test_shards_get_their_index_back(tmp_path: Path, tiny: Path) -> None:
    source = lay_out(tiny, tmp_path / "source", BROKEN["index missing"][0])
    adopt(source, str(tmp_path / "out"))
    assert base_digest(tmp_path / "out") == base_digest(tiny)
    (source / "model-00002-of-00002.safetensors").unlink()
    said = refused(source, tmp_path / "other")
    assert "of 2 files such as model-00001-of-00002.safetensors there are 1" in said


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("open('ran', 'w')",))


def test_a_pickle_runs_nothing(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = lay_out(tiny, tmp_path / "source", pickled)
    torch.save({"a": Payload()}, source / "pytorch_model.bin")
    assert "pytorch_model.bin can't be read as weights" in refused(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_what_is_broken_is_said_and_leaves_nothing(tmp_path: Path, tiny: Path) -> None:
    source = lay_out(tiny, tmp_path / "source", pickled)
    file, out = source / "pytorch_model.bin", tmp_path / "out"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    assert "pytorch_model.bin can't be read as weights; it may be cut" in refused(source, out)
    file.write_text(POINTER)
    assert "pytorch_model.bin is a Git LFS pointer" in refused(source, out)
    torch.save([torch.zeros(1)], file)
    assert "holds a list, not tensors by name" in refused(source, out)
    torch.save({"model": {"a": torch.zeros(1)}}, file)
    assert "'model' is a dict, not a tensor" in refused(source, out)
    torch.save({"a": torch.full((1,), torch.nan)}, file)
    assert "numbers that aren't finite" in refused(source, out)
    torch.save({"a": torch.zeros(1)}, file)
    assert "weights are missing: " in refused(source, out)
    file.write_bytes(whole)
    (source / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(source, out)
    shutil.copy(tiny / "tokenizer.json", source)
    (source / "action_head--1_checkpoint.pt").touch()
    assert "is OpenVLA-OFT" in refused(source, out)
    shards = lay_out(tiny, tmp_path / "shards", pickled_shards)
    (shards / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin is missing" in refused(shards, out)
    assert "can be loaded as it is" in refused(tiny, out)
    assert "there is no checkpoint folder" in refused(tmp_path / "none", out)
    assert "is no adapter" in refused(lay_out(tiny, tmp_path / "b", pickled), out, "--base", ".")


def test_a_disk_without_room_is_told_first(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = lay_out(tiny, tmp_path / "source", pickled)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 8, 1))
    said = refused(source, tmp_path / "out")
    assert f"error: {tmp_path}: its disk has no room for the checkpoint out (" in said


def test_a_folder_that_exists_stays(tmp_path: Path, tiny: Path) -> None:
    source = lay_out(tiny, tmp_path / "source", pickled)
    ended = CliRunner().invoke(app, ["checkpoint", "adopt", str(source), str(source)])
    assert ended.exit_code == 2
    assert (source / "pytorch_model.bin").exists()


def adapter(
    tiny: Path, folder: Path, *, prefix: str = "base_model.model.", **config: object
) -> Path:
    """An adapter of all linear layers of a language model's block, and of the head."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for key, tensor in load_file(tiny / WEIGHTS).items():
        if tensor.ndim == 2 and ("layers.0" in key or "lm_head" in key or "blocks.1.mlp" in key):
            out, into = tensor.shape
            layer = prefix + key.removesuffix(".weight")
            factors[f"{layer}.lora_A.weight"] = torch.randn(2, into, generator=generator)
            factors[f"{layer}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"} | config
    raw |= {"base_model_name_or_path": "openvla/openvla-7b", "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_merged_as_peft_merges_it(tmp_path: Path, tiny: Path, rslora: bool) -> None:
    source = adapter(tiny, tmp_path / "adapter", use_rslora=rslora)
    lay_out(tiny, tmp_path / "tuned", beside)
    shutil.copy(tmp_path / "tuned/dataset_statistics.json", source)
    assert "openvla/openvla-7b with --base" in refused(source, tmp_path / "out")
    adopt(source, str(tmp_path / "out"), "--base", str(tiny))

    model = peft.PeftModel.from_pretrained(load_model(tiny), source).merge_and_unload()
    merged = CheckpointReader(tmp_path / "out")
    expected = model.state_dict()
    assert set(merged) == set(expected)
    changed = 0
    for key, tensor in expected.items():
        torch.testing.assert_close(merged.tensor(key), tensor)
        changed += not torch.equal(tensor, CheckpointReader(tiny).tensor(key))
    assert changed == len(load_file(source / "adapter_model.safetensors")) // 2
    statistics = OpenVLAConfig.from_directory(tmp_path / "out").spec.norm_stats
    assert list(statistics) == ["libero_spatial_no_noops"]


def test_an_adapter_that_can_not_be_merged_is_refused(tmp_path: Path, tiny: Path) -> None:
    out, base = tmp_path / "out", ("--base", str(tiny))
    for number, (config, said) in enumerate(
        [
            ({"use_dora": True}, "use_dora isn't supported here; merge it with PEFT's"),
            ({"bias": "all"}, "bias isn't supported here"),
            ({"peft_type": "IA3"}, "peft_type IA3 isn't supported here"),
            ({"r": 0}, "names no r and lora_alpha"),
            ({"prefix": "other."}, "doesn't fit"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', so the adapter"),
            ({"init_lora_weights": "pissa_niter_4"}, "merge it there with PEFT's merge_and_"),
            ({"init_lora_weights": "OLoRA"}, "a base that its training changed"),
            ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
            ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ]
    ):
        folder = adapter(tiny, tmp_path / str(number), **config)
        assert said in refused(folder, out, *base)
    folder = tmp_path / "0"
    shutil.rmtree(folder)
    adapter(tiny, folder)
    factors = load_file(folder / "adapter_model.safetensors")
    first = sorted(factors)[0]
    save_file(factors | {first: factors[first] / 0}, folder / "adapter_model.safetensors")
    assert "no factor of LoRA with finite numbers" in refused(folder, out, *base)
    del factors[first]
    save_file(factors, folder / "adapter_model.safetensors")
    assert "a factor is missing" in refused(folder, out, *base)
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refused(folder, out, *base)
    alone = lay_out(tiny, tmp_path / "alone", adapter_alone)
    assert "is a Git LFS" in refused(
        alone, out, "--base", str(lay_out(tiny, tmp_path / "lfs", BROKEN["git lfs"][0]))
    )


@pytest.mark.parametrize("begun", [True, False, "gaussian", "Gaussian", "eva", None])
def test_an_adapter_that_began_beside_its_base_is_merged(
    tmp_path: Path, tiny: Path, begun: object
) -> None:
    source = adapter(tiny, tmp_path / "adapter", init_lora_weights=begun)
    adopt(source, str(tmp_path / "out"), "--base", str(tiny))


def test_an_adapter_below_ofts_heads_is_ofts(tmp_path: Path, tiny: Path) -> None:
    """As its fine-tuning leaves them; a link to the adapter changes nothing."""
    run = tmp_path / "run"
    run.mkdir()
    source, out, base = adapter(tiny, run / "lora_adapter"), tmp_path / "out", ("--base", str(tiny))
    for name, content, said in (
        ("action_head--9_checkpoint.pt", "", "(action_head--9_checkpoint.pt), and its actions are"),
        ("vision_backbone--9_checkpoint.pt", "", "(vision_backbone--9_checkpoint.pt), and its tow"),
        ("config.json", '{"num_actions_chunk": 8}', "so give --convention, stop for what openvla"),
    ):
        (run / name).write_text(content)
        assert said in refused(source, out, *base)
        (tmp_path / "link").symlink_to(source)
        assert said in refused(tmp_path / "link", out, *base)
        (tmp_path / "link").unlink()
        (run / name).unlink()
    (run / "config.json").write_text("somebody's")
    (run / "train.py").write_text("NUM_ACTIONS_CHUNK = 8")
    adopt(source, str(out), *base)


def test_what_is_wrong_is_named_where_it_lies(tmp_path: Path, tiny: Path) -> None:
    """The folder that was filled is gone by then."""
    out = tmp_path / "out"
    source = lay_out(tiny, tmp_path / "source", pickled)
    tensors = load_file(tiny / WEIGHTS)
    torch.save({"a": torch.zeros(1)}, source / "pytorch_model.bin")
    assert f"error: {source}: weights are missing" in refused(source, out)
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "dataset_statistics.json").write_text("{")
    assert f"{source}/dataset_statistics.json" in refused(source, out)
    tuned = adapter(tiny, tmp_path / "adapter")
    (tuned / "dataset_statistics.json").write_text("{")
    said = refused(tuned, out, "--base", str(tiny))
    assert f"{tuned}/dataset_statistics.json" in said
    assert ".partial" not in said


def test_counts_and_positions_of_a_judge_are_no_quantised_weights(
    tmp_path: Path, tiny: Path
) -> None:
    source = tmp_path / "judge"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "siglip"}')
    whole = {
        "norm.weight": torch.ones(4),
        "norm.num_batches_tracked": torch.tensor(7),
        "embeddings.position_ids": torch.arange(4)[None],
        "attention.mask": torch.ones(2, 2, dtype=torch.bool),
    }
    torch.save(whole, source / "pytorch_model.bin")
    adopt(source, str(tmp_path / "out"))
    reader = CheckpointReader(tmp_path / "out")
    for key, tensor in whole.items():
        torch.testing.assert_close(reader.tensor(key), tensor)
    for number, (key, dtype) in enumerate(
        [("a.weight", torch.int8), ("a.qweight", torch.int32), ("scale", torch.float8_e4m3fn)]
    ):
        odd = {key: torch.zeros(2, 2, dtype=dtype)}
        torch.save(whole | odd, source / "pytorch_model.bin")
        said = refused(source, tmp_path / f"out{number}")
        assert f"error: {source}: weights are quantised ({key} is " in said
