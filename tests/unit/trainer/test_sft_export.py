"""What training writes is an OpenVLA checkpoint like the one it began with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.config import ConfigError, LoraConfig, RunConfig, SftConfig  # noqa: E402
from vlarl.json_lines import DamagedFileError, read_lines  # noqa: E402
from vlarl.learning.export import cast_checkpoint, export_checkpoint  # noqa: E402
from vlarl.learning.stage_log import METRICS, StageLog  # noqa: E402
from vlarl.learning.stage_progress import (  # noqa: E402
    StageProgress,
    load_stage,
    stage_checkpoints,
)
from vlarl.learning.trainable import trainable_model  # noqa: E402
from vlarl.models.network import pad_prompts  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.lora import lora_layers  # noqa: E402
from vlarl.models.openvla.network import load_model  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.weights.checkpoint import CheckpointReader, NotFiniteError, save_tensors  # noqa: E402
from vlarl.weights.folder import REWARD_CARD, CheckpointError  # noqa: E402

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
LOGGED = RunConfig()
HEAD = "language_model.lm_head.weight"
STATISTICS = {
    "squares": {
        "action": {name: [1.0] * 7 for name in ("mean", "std", "min", "max", "q01", "q99")}
        | {"mask": [True] * 6 + [False]}
    }
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """In bfloat16 and in shards, with its statistics in a file of their own, as the originals."""
    directory = tmp_path / "base"
    make_tiny_checkpoint(directory, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    reader = CheckpointReader(directory)
    tensors = [(key, reader.tensor(key).bfloat16()) for key in reader]
    save_tensors(directory, tensors, shard_bytes=100_000)
    norm_stats = json.loads((directory / "config.json").read_text())["norm_stats"]
    (directory / "dataset_statistics.json").write_text(json.dumps(norm_stats))
    (directory / "modeling_prismatic.py").write_text("# the original's own code\n")
    return directory


def test_only_what_was_trained_changes(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    head = torch.randn_like(CheckpointReader(base).tensor(HEAD).float())
    weights = {HEAD: head, "norm.weight": torch.ones(3)}
    export_checkpoint(base, target, weights, statistics=STATISTICS, center_crop=True)
    before, after = CheckpointReader(base), CheckpointReader(target)
    assert list(before) == list(after)
    assert {key for key in before if not torch.equal(before.tensor(key), after.tensor(key))} == {
        HEAD
    }
    assert torch.equal(after.tensor(HEAD), head.bfloat16())
    config = OpenVLAConfig.from_directory(target)
    assert list(config.spec.norm_stats) == ["squares"]
    assert config.spec.center_crop
    assert (target / "modeling_prismatic.py").exists()
    load_model(target)
    # Written again, over what is there; and nothing is said about statistics or crops.
    export_checkpoint(base, target, {})
    assert torch.equal(CheckpointReader(target).tensor(HEAD), before.tensor(HEAD))
    assert "libero_goal" in OpenVLAConfig.from_directory(target).spec.norm_stats
    assert not OpenVLAConfig.from_directory(target).spec.center_crop
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}, "nothing is left over"


def test_factors_are_merged(base: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = lora_layers(OpenVLAConfig.from_directory(base))
    factors = {}
    for layer, (out, into) in layers.items():
        factors[f"{layer}.A"] = torch.randn(2, into, generator=generator)
        factors[f"{layer}.B"] = torch.randn(out, 2, generator=generator)
    export_checkpoint(base, tmp_path / "out", factors, lora=LoraConfig(rank=2, alpha=3))
    before, after = CheckpointReader(base), CheckpointReader(tmp_path / "out")
    assert list(before) == list(after)
    for key in before:
        expected = before.tensor(key)
        if (layer := key.removesuffix(".weight")) in layers:
            by_hand = 1.5 * (factors[f"{layer}.B"] @ factors[f"{layer}.A"])
            exact = expected.float() + by_hand
            step = torch.finfo(torch.bfloat16).eps * exact.abs()
            assert (after.tensor(key).float() - exact).abs().le(step).all(), key
        else:
            assert torch.equal(after.tensor(key), expected), key


@pytest.mark.parametrize("weight", [float("nan"), 3.4e38], ids=["nan", "overflow"])
def test_weights_that_are_not_finite_are_not_exported(
    base: Path, tmp_path: Path, weight: float
) -> None:
    """3.4e38 is a float32, and infinite in bfloat16."""
    before = CheckpointReader(base).tensor(HEAD)
    head = before.float()
    head[2, 3] = weight
    export_checkpoint(base, tmp_path / "out", {})
    with pytest.raises(NotFiniteError, match=rf"{HEAD} has numbers .* \(1 of {head.numel()}\)"):
        export_checkpoint(base, tmp_path / "out", {HEAD: head})
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}, "nothing is left over"
    assert torch.equal(CheckpointReader(tmp_path / "out").tensor(HEAD), before)


def test_a_checkpoint_is_stored_in_another_type(base: Path, tmp_path: Path) -> None:
    cast_checkpoint(base, tmp_path / "half", "float16")
    before, half = CheckpointReader(base), CheckpointReader(tmp_path / "half")
    assert list(before) == list(half)
    for key in before:
        # bfloat16's numbers are float16's where they are neither tiny nor huge.
        assert half.tensor(key).dtype == torch.float16
        nearest = torch.from_numpy(before.tensor(key).float().numpy().astype("float16"))
        assert torch.equal(half.tensor(key), nearest), key
    config = json.loads((tmp_path / "half/config.json").read_text())
    assert config.pop("torch_dtype") == config["text_config"].pop("torch_dtype") == "float16"
    original = json.loads((base / "config.json").read_text())
    assert original.pop("torch_dtype") == original["text_config"].pop("torch_dtype") == "float32"
    assert config == original
    assert (tmp_path / "half/dataset_statistics.json").exists()
    assert {one.dtype for one in load_model(tmp_path / "half").parameters()} == {torch.float32}


def test_what_a_type_cannot_hold_is_not_cast(base: Path, tmp_path: Path) -> None:
    reader = CheckpointReader(base)
    tensors = {key: reader.tensor(key) for key in reader}
    tensors[HEAD][0, 0] = 70_000
    save_tensors(base, tensors.items())
    with pytest.raises(CheckpointError, match=rf"{HEAD} .* 70,144, and float16 ends at 65,504"):
        cast_checkpoint(base, tmp_path / "half", "float16")
    (base / REWARD_CARD).write_text("{}")
    with pytest.raises(CheckpointError, match="reward model"):
        cast_checkpoint(base, tmp_path / "half", "bfloat16")
    assert not (tmp_path / "half").exists()


def test_what_the_passes_never_use_is_frozen(base: Path) -> None:
    model = trainable_model(base, torch.device("cpu"))
    ids, lengths = pad_prompts([[1, 5, 6]], 0)
    actions = torch.full((1, 7), model.config.spec.action_ids.stop - 3)
    output = model(torch.zeros(1, 6, 28, 28), ids, lengths, actions)
    torch.autograd.backward(output.logits.square().sum())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_the_newest_and_the_best_checkpoints_stay(tmp_path: Path) -> None:
    fresh = StageProgress("digest", 12)
    progress = fresh
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 5.0)):
        progress = progress.after(step, loss)
        weights = {"weights.a": torch.tensor(float(step))}
        stage_checkpoints(tmp_path).save(step, progress, weights, keep=1, best=progress.best_step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002", "step-0000004"]
    loaded, tensors = load_stage(tmp_path, fresh, SftConfig)
    assert loaded == StageProgress("digest", 12, step=4, best_step=2, best_loss=1.0)
    assert tensors["weights.a"] == 4
    assert load_stage(tmp_path / "none", fresh, SftConfig) == (fresh, {})
    rescaled = replace(progress, terms={"lora.alpha": 1.0})
    stage_checkpoints(tmp_path).save(4, rescaled, tensors, keep=1)
    rescaled = replace(fresh, terms={"lora.alpha": 2.0})
    with pytest.raises(ConfigError, match=r"step-0000004 has learned with lora.alpha = 1.0"):
        load_stage(tmp_path, rescaled, SftConfig)
    unmeasured = fresh.after(5, None)
    assert (unmeasured.step, unmeasured.best_step) == (5, 5)


def test_lines_newer_than_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    log = StageLog(tmp_path, "pretrain", 0, LOGGED)
    log.write(9, {"loss": 1.0})
    log.close()
    log = StageLog(tmp_path, "training", 0, LOGGED)
    for step in (2, 4, 6):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "training", "st')
    StageLog(tmp_path, "training", 4, LOGGED).close()
    lines = [(line["stage"], line["step"]) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert lines == [("pretrain", 9), ("training", 2), ("training", 4)]


def test_a_line_of_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "training", "step": 2}\n{"iteration": 3}\n')
    with pytest.raises(DamagedFileError, match=r"metrics\.jsonl, line 2: not a line of this file"):
        StageLog(tmp_path, "training", 4, LOGGED)


def test_a_resumed_stage_may_say_its_last_line_again(tmp_path: Path) -> None:
    log = StageLog(tmp_path, "training", 0, LOGGED)
    log.write(2, {"loss": 1.0})
    log.write(2, {"success_rate": 0.1})
    log.close()
    for _ in range(2):
        log = StageLog(tmp_path, "training", 2, LOGGED)
        log.write(2, {"success_rate": 0.1})
        log.close()
    log = StageLog(tmp_path, "training", 2, LOGGED)
    log.write(4, {"success_rate": 0.1})
    log.close()
    lines = [(line["step"], "loss" in line) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert lines == [(2, True), (2, False), (4, False)]


def test_every_scalar_is_documented() -> None:
    documented = (ROOT / "docs/sft.md").read_text()
    for name, meaning in METRICS.items():
        assert f"| `{name}` | {meaning} |" in documented, name
