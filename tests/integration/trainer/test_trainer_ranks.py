"""One and two ranks learn the same from the same batch."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from vlarl.stack.ranks import ranks_command

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from services.trainer.batch import Experience  # noqa: E402
from services.trainer.learner import Learner  # noqa: E402
from services.trainer.world import World  # noqa: E402
from tests.integration.trainer import rank_program  # noqa: E402
from tests.integration.trainer.trainer_samples import (  # noqa: E402
    ActingPolicy,
    made_up_trajectories,
    trainer_config,
)

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def run_two_ranks(*arguments: str) -> None:
    program = str(Path(__file__).with_name("rank_program.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*ranks_command(2), program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_two_ranks_learn_what_one_learns(
    checkpoint: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    world = World.from_environment()
    one = Learner(checkpoint, trainer_config(), center_crop=False, seed=3, world=world)
    acting = ActingPolicy(checkpoint, one.policy, temperature=1.3)
    for iteration in range(2):
        # The second batch is stale, and odd in number: one rank's last pass counts for nothing.
        experience = Experience(iteration, iteration + 1, made_up_trajectories(acting, 3))
        (tmp_path / f"{iteration}.bin").write_bytes(experience.to_bytes())
    rank_program.main(checkpoint, tmp_path, 7, dtype)
    run_two_ranks(str(checkpoint), str(tmp_path), "2", dtype)
    one_rank, two_ranks = (
        json.loads((tmp_path / f"metrics-{ranks}.json").read_text()) for ranks in (1, 2)
    )
    for alone, together in zip(one_rank, two_ranks, strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"seconds_inference"}:
            assert together[name] == pytest.approx(alone[name], abs=tolerance), name
    expected, got = (load_file(tmp_path / f"tensors-{ranks}.safetensors") for ranks in (1, 2))
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=tolerance, rtol=1e-3)
