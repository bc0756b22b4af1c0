"""Whole runs of `vlarl sft`: over-fitting, killed and resumed, on two ranks, and their mistakes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.roots import PYTHONPATH

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from tests.integration.trainer import sft_program  # noqa: E402
from tests.integration.trainer.demonstrated import (  # noqa: E402
    CAPTURE,
    sft_config,
    task_samples,
    two_cameras,
    write_dataset,
)
from tests.integration.trainer.forked import Program  # noqa: E402
from vlarl.config import SftConfig, dump_toml  # noqa: E402
from vlarl.data.dataset import read_dataset  # noqa: E402
from vlarl.images import decode_image, prepare_image  # noqa: E402
from vlarl.json_lines import read_lines  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.lora import lora_layers  # noqa: E402
from vlarl.models.openvla.network import generate_actions, load_model  # noqa: E402
from vlarl.models.openvla.pixels import PixelNormalizer  # noqa: E402
from vlarl.models.openvla.prompt import PromptBuilder  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.registry import policy_family  # noqa: E402
from vlarl.weights.checkpoint import CheckpointReader, base_digest  # noqa: E402
from vlarl_cli import app  # noqa: E402
from vlarl_jobs.sft.main import run  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def start(config: SftConfig, run_dir: Path, ranks: int = 1) -> Program:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.toml").write_text(dump_toml(config))
    return Program(sft_program.main, run_dir, log=run_dir / "log.txt", ranks=ranks)


def run_to_the_end(config: SftConfig, run_dir: Path, ranks: int = 1) -> None:
    process = start(config, run_dir, ranks)
    try:
        code = process.join(200)
    finally:
        process.kill()
    assert code == 0, (run_dir / "log.txt").read_text()[-3000:]


def run_here(config: SftConfig, run_dir: Path) -> None:
    """In this process, which has torch."""
    run_dir.mkdir()
    run(config, run_dir)


def metrics_of(run_dir: Path) -> list[dict[str, object]]:
    """Without the speed, which no two runs share."""
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in lines]


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoint/model.safetensors")


def test_a_small_dataset_is_learned_by_heart_and_the_checkpoint_acts_so(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", task_samples(), task_samples(index=1, episodes=2))
    config = sft_config(
        dataset,
        export="last",
        data={"held_out": 0.0},
        augmentation={"random_crop": False, "brightness": 0, "contrast": 0, "saturation": 0}
        | {"hue": 0},
        training={"steps": 400, "mini_batch": 18, "micro_batch": 18, "schedule": "cosine"}
        | {"learning_rate": 2e-3, "evaluate_every": 400, "log_every": 50},
    )
    run(config, tmp_path)
    checkpoint = tmp_path / "checkpoint"
    model_config = OpenVLAConfig.from_directory(checkpoint)
    assert list(model_config.spec.norm_stats) == ["squares"]
    assert not model_config.spec.center_crop
    model = load_model(checkpoint)
    stats = model_config.spec.statistics("squares")
    tokenizer = model_config.action_tokenizer
    for task in read_dataset(dataset).tasks:
        prompt = PromptBuilder(checkpoint).token_ids(task.instruction)
        frames = [prepare_image(decode_image(encoded), 28, False) for encoded in task.frames]
        pixels = PixelNormalizer.from_directory(checkpoint)(np.stack(frames))
        prompts = torch.tensor(prompt).expand(len(frames), -1)
        acted = generate_actions(model, torch.from_numpy(pixels), prompts).token_ids.numpy()
        assert np.array_equal(acted, tokenizer.encode(stats.normalize(task.actions)))
        # Within a bin of what the expert did.
        bin_width = (stats.q99 - stats.q01) / 255
        off = np.abs(stats.unnormalize(tokenizer.decode(acted)) - task.actions)[1:-1, :6]
        assert (off <= bin_width[:6] + 1e-6).all()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", task_samples(episodes=8))
    stage = {"steps": 24, "mini_batch": 5, "micro_batch": 3, "evaluate_every": 4, "log_every": 3}
    config = sft_config(dataset, training=stage, pretrain=stage, data={"held_out": 0.25})
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    run_here(config, calm)
    for stage_name, step in (("pretrain", 8), ("training", 4), ("training", 12)):
        process = start(config, killed)
        try:
            deadline = time.monotonic() + 100
            while not list((killed / "checkpoints" / stage_name).glob(f"step-*{step:02d}")):
                assert process.returncode is None, (killed / "log.txt").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.001)
        finally:
            process.kill()
    run_to_the_end(config, killed)
    expected, got = weights_of(calm), weights_of(killed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert metrics_of(killed) == metrics_of(calm)
    assert [
        (line["stage"], line["step"]) for line in metrics_of(calm) if "held_out_loss" in line
    ] == [(name, step) for name in ("pretrain", "training") for step in range(4, 25, 4)]
    kept = {path.name for path in (killed / "checkpoints/training").iterdir()}
    state = json.loads((killed / "checkpoints/training/step-0000024/state.json").read_text())
    assert kept == {"step-0000024", f"step-{state['best_step']:07d}"}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_two_ranks_learn_what_one_learns(tmp_path: Path, mode: str) -> None:
    dataset = write_dataset(tmp_path / "data", task_samples(), task_samples(index=1, episodes=3))
    config = sft_config(
        dataset,
        mode=mode,
        target_sigma=2.0,
        input_sigma=3.0,
        pretrain={"steps": 3, "mini_batch": 5, "micro_batch": 2, "evaluate_every": 3},
        activation_checkpointing=True,
    )
    run_here(config, tmp_path / "one")
    run_to_the_end(config, tmp_path / "two", 2)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(one) == len(two) > 6
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        # Not what an argmax decides: rounding may turn it round.
        for name in alone.keys() & {"step", "loss", "grad_norm", "held_out_loss", "held_out_nll"}:
            assert together[name] == pytest.approx(alone[name], abs=1e-5, rel=1e-5), name
        assert together.get("held_out_mm") == pytest.approx(alone.get("held_out_mm"), abs=1e-2)
    expected, got = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name, tensor in expected.items():
        # A key's bias has no gradient but rounding, which AdamW scales up to whole steps.
        torch.testing.assert_close(got[name], tensor, atol=1e-4, rtol=1e-3)
    if mode == "lora":
        base = CheckpointReader(tmp_path / "one/pretrained")
        layers = {
            f"{layer}.weight" for layer in lora_layers(OpenVLAConfig.from_directory(base.directory))
        }
        changed = {
            name for name, each in expected.items() if not torch.equal(each, base.tensor(name))
        }
        assert changed == layers


def test_gradients_are_accumulated_truly(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    rows = []
    for micro_batch in (5, 2):
        run_dir = tmp_path / str(micro_batch)
        run_dir.mkdir()
        run(sft_config(dataset, training={"micro_batch": micro_batch}), run_dir)
        rows.append(metrics_of(run_dir))
    for whole, pieces in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "held_out_loss"):
            assert pieces.get(name) == pytest.approx(whole.get(name), abs=1e-5), name


def test_pretraining_tells_where_things_are_and_leaves_no_head(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", task_samples(episodes=16, levels=6))
    config = sft_config(
        dataset,
        augmentation={"random_crop": False},
        pretrain={"steps": 150, "mini_batch": 16, "micro_batch": 16, "learning_rate": 2e-3}
        | {"evaluate_every": 75, "schedule": "cosine"},
        training={"steps": 1},
    )
    run(config, tmp_path)
    lines = [line for line in metrics_of(tmp_path) if line["stage"] == "pretrain"]
    measured = [line for line in lines if "held_out_mm" in line]
    # Positions spread over 300 mm: 90 mm off without looking.
    assert measured[-1]["held_out_mm"] < 30
    assert measured[-1].keys() >= {"held_out_mm/square_x", "held_out_mm/square_y"}
    initial, pretrained = (
        CheckpointReader(tmp_path / "initial"),
        CheckpointReader(tmp_path / "pretrained"),
    )
    assert list(initial) == list(pretrained)
    changed = {
        key for key in initial if not torch.equal(initial.tensor(key), pretrained.tensor(key))
    }
    assert changed
    assert all(key.startswith(("vision_backbone", "projector")) for key in changed)
    assert not any(".blocks.1." in key for key in changed), "the last blocks are never computed"


FAMILY = {"chunk": 2, "cameras": ["agentview", "wrist"], "proprio": 8}


def chunk_dataset(folder: Path) -> Path:
    capture = replace(CAPTURE, further_cameras=("wrist",))
    return write_dataset(folder, two_cameras(task_samples(episodes=4, length=5)), capture=capture)


@pytest.mark.parametrize("convention", ["stop", "no_stop"])
def test_a_chunk_policy_learns_what_it_shows_in_its_checkpoint(
    tmp_path: Path, convention: str
) -> None:
    """From random weights, pretrained: two cameras, proprioception, chunks of two actions."""
    stage = {"steps": 120, "mini_batch": 8, "micro_batch": 8, "evaluate_every": 40, "log_every": 5}
    config = sft_config(
        chunk_dataset(tmp_path / "data"),
        family=FAMILY | {"convention": convention},
        data={"partial_chunks": True},
        target_sigma=1.0,
        pretrain=stage | {"steps": 20},
        training=stage | {"learning_rate": 2e-3},
    )
    run(config, tmp_path)
    lines = [line for line in metrics_of(tmp_path) if line["stage"] == "training"]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert lines[-1].keys() >= {"held_out_l1", "held_out_bins/x", "held_out_accuracy/gripper"}
    family = policy_family(tmp_path / "checkpoint")
    family.check()
    spec = family.spec
    assert (spec.family, spec.chunk, spec.cameras) == ("openvla_oft", 2, ("agentview", "wrist"))
    assert spec.center_crop
    (task,) = read_dataset(tmp_path / "data").tasks
    expected = np.quantile(task.proprio.astype(np.float64), 0.99, axis=0)
    np.testing.assert_array_equal(spec.proprio_stats["squares"].q99, expected)
    before, after = (CheckpointReader(tmp_path / one) for one in ("initial", "checkpoint"))
    assert list(before) == list(after)
    for name in ("proprio_projector.fc1.weight", "proprio_projector.fc2.bias"):
        assert not torch.equal(before.tensor(name), after.tensor(name))


def test_an_openvla_becomes_a_chunk_policy_by_lora(tmp_path: Path) -> None:
    """Its weights stay; of what is learned, only the projector of proprioception is new."""
    base = tmp_path / "base"
    make_tiny_checkpoint(base, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    config = sft_config(
        chunk_dataset(tmp_path / "data"),
        mode="lora",
        model=None,
        checkpoint=base,
        family=FAMILY,
        activation_checkpointing=True,
    )
    run_here(config, tmp_path / "one")
    plain, initial, learned = map(
        CheckpointReader, (base, tmp_path / "one/initial", tmp_path / "one/checkpoint")
    )
    assert all(torch.equal(plain.tensor(name), initial.tensor(name)) for name in plain)
    new = {name for name in initial if name.startswith("proprio_projector.")}
    assert {*initial} - {*plain} == new
    changed = {
        name for name in initial if not torch.equal(initial.tensor(name), learned.tensor(name))
    }
    layers = lora_layers(OpenVLAConfig.from_directory(base))
    assert changed == {f"{layer}.weight" for layer in layers} | new
    run_to_the_end(config, tmp_path / "two", 2)
    expected, got = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-4, rtol=1e-3)


def test_what_is_written_is_the_best_or_the_last(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    # A rate that ruins the weights after a first good step.
    training = {"steps": 4, "evaluate_every": 1, "learning_rate": 0.3, "warmup_steps": 100}
    config = sft_config(dataset, training=training, keep_checkpoints=4)
    run(config, tmp_path)
    losses = {line["step"]: line["held_out_loss"] for line in metrics_of(tmp_path)}
    best = min(losses, key=losses.__getitem__)
    saved = tmp_path / "checkpoints/training" / f"step-{best:07d}/tensors.safetensors"
    head = "language_model.lm_head.weight"
    assert torch.equal(weights_of(tmp_path)[head], load_file(saved)[f"weights.{head}"])
    assert OpenVLAConfig.from_directory(tmp_path / "checkpoint").spec.center_crop
    before = base_digest(tmp_path / "checkpoint")
    run(config.model_copy(update={"export": "last"}), tmp_path)
    last = tmp_path / "checkpoints/training/step-0000004/tensors.safetensors"
    assert torch.equal(weights_of(tmp_path)[head], load_file(last)[f"weights.{head}"])
    assert (base_digest(tmp_path / "checkpoint") == before) == (best == 4)


def test_the_command_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    def sft(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "vlarl", "sft", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": PYTHONPATH, "COLUMNS": "400"},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, " ".join(done.stderr.split())

    file = tmp_path / "config.toml"
    missing = sft_config(tmp_path / "none")
    file.write_text(dump_toml(missing))
    code, said = sft(str(file), "--run-dir", str(tmp_path / "run"))
    assert code == 1
    assert "no dataset here" in said
    dataset = write_dataset(tmp_path / "data")
    file.write_text(dump_toml(sft_config(dataset)).replace("mini_batch", "minibatch"))
    code, said = sft(str(file))
    assert code == 2
    assert "did you mean 'mini_batch'?" in said
    file.write_text(dump_toml(sft_config(dataset)))
    code, said = sft(str(file), "--set", "checkpoint=elsewhere", "--run-dir", str(tmp_path / "b"))
    assert code == 2
    assert "either checkpoint or [model]" in said
    code, said = sft(str(file), "--run-dir", str(tmp_path / "done"))
    assert code == 0, said
    assert "holds the weights after step" in said
    write_dataset(dataset, task_samples(index=1))
    code, said = sft("--resume", str(tmp_path / "done"))
    assert code == 1
    assert "go on with the same checkpoint and datasets" in said


def test_a_run_that_is_going_on_is_nobody_elses(tmp_path: Path) -> None:
    """Two would take every step twice, and overwrite one another's checkpoints."""
    file, run_dir = tmp_path / "settings.toml", tmp_path / "a run's [b]"
    dataset = write_dataset(tmp_path / "data")
    stage = {"steps": 1_000_000, "mini_batch": 5, "micro_batch": 5, "evaluate_every": 10}
    file.write_text(dump_toml(sft_config(dataset, training=stage, model=None, checkpoint="c")))
    make_tiny_checkpoint(tmp_path / "c", image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    command = [sys.executable, "-m", "vlarl", "sft"]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "COLUMNS": "400"}

    def sft(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        return done.returncode, done.stderr

    with subprocess.Popen(
        [*command, str(file), "--run-dir", str(run_dir)],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as first:
        try:
            while not list((run_dir / "checkpoints/training").glob("step-*")):
                assert first.poll() is None
                time.sleep(0.01)
            before = (run_dir / "config.toml").read_bytes()
            shorter = ("--resume", str(run_dir), "--set", "training.steps=10")
            code, said = sft(*shorter)
            assert code == 1
            assert said.startswith(
                f"error: {run_dir} is in use by `vlarl sft`, process {first.pid}"
            )
            assert len(said.splitlines()) == 1
            assert (run_dir / "config.toml").read_bytes() == before
        finally:
            first.kill()
    code, said = sft(*shorter)
    assert code == 0, said
    assert (run_dir / "checkpoint/model.safetensors").exists()


def test_the_command_has_help() -> None:
    shown = CliRunner().invoke(app, ["sft", "--help"])
    assert shown.exit_code == 0
    assert "RUN/checkpoint" in shown.output
