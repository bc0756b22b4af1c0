"""Learning on a GPU, against the same learning on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.roots import PYTHONPATH

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.integration.trainer.demonstrated import sft_config, write_dataset  # noqa: E402
from tests.integration.trainer.trainer_samples import (  # noqa: E402
    ActingPolicy,
    made_up_trajectories,
    trainer_config,
)
from vlarl.config import SftConfig, TrainerConfig, dump_toml  # noqa: E402
from vlarl.json_lines import read_lines  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl_trainer.batch import Experience  # noqa: E402
from vlarl_trainer.learner import Learner  # noqa: E402

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
ON_CPU = Ranks.alone(torch.device("cpu"))


def learner(checkpoint: Path, ranks: Ranks, config: TrainerConfig | None = None) -> Learner:
    return Learner(checkpoint, config or trainer_config(), center_crop=False, seed=3, ranks=ranks)


@pytest.fixture(scope="module")
def experience(checkpoint: Path) -> Experience:
    """Actions drawn on a CPU, in float32."""
    acting = ActingPolicy(checkpoint, learner(checkpoint, ON_CPU).policy, temperature=1.3)
    return Experience(0, 1, made_up_trajectories(acting, 4))


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_an_update_is_the_cpus(
    checkpoint: Path, experience: Experience, on_gpu: Ranks, sharding: str
) -> None:
    """The GPU also finds the log-probs that the CPU acted with, or it would refuse to learn."""
    there = learner(checkpoint, on_gpu, trainer_config(sharding=sharding))
    here = learner(checkpoint, ON_CPU)
    report, expected = there.learn(experience), here.learn(experience)
    assert report["logprob_gap"] < 1e-4
    for name in ("policy_loss", "approximate_kl", "entropy", "value_loss", "grad_norm"):
        assert report[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    ours, theirs = there.snapshot().tensors, here.snapshot().tensors
    assert ours.keys() == theirs.keys()
    # As vectors: Adam makes a whole step of the least noise where a gradient is all but zero.
    # Reached on an H100: 5e-5, 2e-3 and 2e-4.
    for kind in (".A", ".B", "critic."):
        names = [
            name for name in theirs if name.startswith(("policy.", "critic.")) and kind in name
        ]
        one = torch.cat([ours[name].flatten().float() for name in names])
        other = torch.cat([theirs[name].flatten().float() for name in names])
        assert (one - other).norm() < 1e-2 * other.norm(), kind


@pytest.mark.parametrize("again", [False, True])
def test_bfloat16_learns_with_float32_factors(
    checkpoint: Path, experience: Experience, on_gpu: Ranks, again: bool
) -> None:
    config = trainer_config(dtype="auto", activation_checkpointing=again)
    one = learner(checkpoint, on_gpu, config)
    assert one.dtype == torch.bfloat16
    report = one.learn(experience)
    assert 1e-4 < report["logprob_gap"] < 0.3
    assert report["approximate_kl"] > 1e-5
    assert report["gpu_memory_bytes"] > 0
    for a, b in one.snapshot().factors.values():
        assert a.dtype == b.dtype == torch.float32
        assert b.abs().max() > 0


def test_what_was_learned_is_taken_over_on_the_other_device(
    checkpoint: Path, experience: Experience, on_gpu: Ranks
) -> None:
    here = learner(checkpoint, ON_CPU)
    here.learn(experience)
    saved = here.snapshot().tensors
    there = learner(checkpoint, on_gpu)
    there.restore(saved)
    for name, tensor in there.snapshot().tensors.items():
        assert torch.equal(tensor, saved[name]), name


def fine_tuned(config: SftConfig, run_dir: Path, devices: str) -> list[dict[str, object]]:
    """Metrics of a run in a process of its own that sees these GPUs."""
    run_dir.mkdir()
    (run_dir / "config.toml").write_text(dump_toml(config))
    program = ROOT / "tests/integration/trainer/sft_program.py"
    environment = os.environ | {"PYTHONPATH": f"{PYTHONPATH}:{os.environ.get('PYTHONPATH', '')}"}
    environment["CUDA_VISIBLE_DEVICES"] = devices
    done = subprocess.run(
        [sys.executable, str(program), str(run_dir)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(read_lines(run_dir / "metrics.jsonl"))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_fine_tuning_is_the_cpus(tmp_path: Path, mode: str) -> None:
    data = write_dataset(tmp_path / "data")
    config = sft_config(data, mode=mode, dtype="float32")
    there = fine_tuned(config, tmp_path / "gpu", "0")
    here = fine_tuned(config, tmp_path / "cpu", "")
    assert len(there) == len(here) == 6
    assert there[0]["loss"] == pytest.approx(here[0]["loss"], abs=1e-4)
    # Rounding grows from step to step. Reached on an H100: 0.1 % of what was learned by then.
    learned = float(here[0]["loss"]) - float(here[-1]["loss"])
    assert learned > 0.1
    for ours, theirs in zip(there, here, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.01 * learned)
    assert there[-1]["held_out_nll"] == pytest.approx(here[-1]["held_out_nll"], abs=0.01 * learned)
    assert (tmp_path / "gpu/checkpoint/model.safetensors").is_file()
