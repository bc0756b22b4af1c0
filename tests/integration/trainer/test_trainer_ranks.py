"""One and two ranks learn the same from the same batch."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.roots import PYTHONPATH
from vlarl.launch.torchrun import ranks_command

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from tests.integration.trainer import rank_program, refusing_program, sharing_program  # noqa: E402
from tests.integration.trainer.forked import Program  # noqa: E402
from tests.integration.trainer.trainer_samples import (  # noqa: E402
    ActingPolicy,
    made_up_trajectories,
    overflowing,
    steep_config,
    trainer_config,
)
from tests.unit.stack.test_service_processes import gone_within  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl_trainer.batch import Experience  # noqa: E402
from vlarl_trainer.learner import Learner  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def run_two_ranks(main: Callable[..., None], folder: Path, *arguments: object) -> None:
    ranks = Program(main, *arguments, log=folder / "log.txt", ranks=2)
    try:
        code = ranks.join(240)
    finally:
        ranks.kill()
    assert code == 0, (folder / "log.txt").read_text()[-4000:]


@pytest.mark.parametrize(
    ("dtype", "sharding", "tolerance"),
    [
        ("float32", "shard", 1e-5),
        ("bfloat16", "shard", 0.03),
        ("float32", "replicate", 1e-5),
        ("float16", "replicate", 0.01),
    ],
)
def test_two_ranks_learn_what_one_learns(
    checkpoint: Path, tmp_path: Path, dtype: str, sharding: str, tolerance: float
) -> None:
    ranks = Ranks.from_environment()
    one = Learner(checkpoint, trainer_config(), center_crop=False, seed=3, ranks=ranks)
    acting = ActingPolicy(checkpoint, one.policy, temperature=1.3)
    for iteration in range(2):
        # The second batch is stale, and odd in number: one rank's last pass counts for nothing.
        experience = Experience(iteration, iteration + 1, made_up_trajectories(acting, 3))
        (tmp_path / f"{iteration}.bin").write_bytes(experience.to_bytes())
    rank_program.main(checkpoint, tmp_path, 7, dtype, sharding)
    run_two_ranks(rank_program.main, tmp_path, checkpoint, tmp_path, 2, dtype, sharding)
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


def test_no_rank_steps_where_the_gradient_is_infinite(checkpoint: Path, tmp_path: Path) -> None:
    """The action whose ratio overflows is one rank's alone."""
    one = Learner(
        checkpoint, steep_config(), center_crop=False, seed=3, ranks=Ranks.from_environment()
    )
    acting = ActingPolicy(checkpoint, one.policy, temperature=1.3)
    trajectories = made_up_trajectories(acting, 3)
    (tmp_path / "good.bin").write_bytes(Experience(0, 1, trajectories).to_bytes())
    spoiled = Experience(1, 2, overflowing(trajectories))
    (tmp_path / "overflowing.bin").write_bytes(spoiled.to_bytes())
    run_two_ranks(refusing_program.main, tmp_path, checkpoint, tmp_path)
    said = [(tmp_path / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert "the policy: the gradient is not finite" in said[0]
    assert said[0] == said[1]
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_frames_are_once_in_the_memory_of_each_machine(tmp_path: Path) -> None:
    """Four ranks, two by two; in one chunk, in several, and none at all."""
    sizes = (1000, 2500, 0)
    arguments = (tmp_path, sizes, 1000)
    ranks = Program(sharing_program.main, *arguments, log=tmp_path / "log.txt", ranks=4)
    try:
        assert ranks.join(240) == 0, (tmp_path / "log.txt").read_text()[-4000:]
    finally:
        ranks.kill()
    for rank in range(4):
        for number, size in enumerate(sizes):
            expected = bytes(index % 251 for index in range(size))
            assert (tmp_path / f"{rank}-{number}.bin").read_bytes() == expected, (rank, number)
        first = 0 if rank < 2 else 2
        assert (tmp_path / f"{rank}-written.bin").read_bytes() == b"written%d" % first


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    """torchrun starts them in sessions of their own, so killing its group would not reach them."""
    program = tmp_path / "rank.py"
    program.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from vlarl.learning.ranks import Ranks\n"
        "ranks = Ranks.from_environment()\n"
        f"(Path({str(tmp_path)!r}) / f'{{ranks.rank}}.pid').write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen([*ranks_command(2), str(program)], env=environment)
    files = [tmp_path / "0.pid", tmp_path / "1.pid"]
    while not all(file.exists() and file.read_text() for file in files):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    assert all(gone_within(int(file.read_text()), 20) for file in files)
