"""What each rank of a test in test_trainer_ranks.py runs: a good update, then one that overflows.

The folder holds good.bin and overflowing.bin, the iterations' experience. Each rank leaves
refused-RANK.txt, rank 0 what it knew before and after: before.safetensors, after.safetensors.
"""

from pathlib import Path

from safetensors.torch import save_file

from tests.integration.trainer.trainer_samples import steep_config
from vlarl.learning.optimizer import DivergedError
from vlarl.learning.ranks import Ranks
from vlarl_trainer.batch import Experience
from vlarl_trainer.learner import Learner


def main(checkpoint: Path, folder: Path) -> None:
    ranks = Ranks.from_environment()
    learner = Learner(checkpoint, steep_config(), center_crop=False, seed=3, ranks=ranks)

    def learn(name: str) -> None:
        encoded = (folder / f"{name}.bin").read_bytes() if ranks.first else b""
        learner.learn(Experience.from_bytes(ranks.broadcast_bytes(encoded)))

    def keep(name: str) -> None:
        tensors = learner.snapshot().tensors
        if ranks.first:
            save_file(tensors, folder / f"{name}.safetensors")

    learn("good")
    keep("before")
    try:
        learn("overflowing")
    except DivergedError as error:
        (folder / f"refused-{ranks.rank}.txt").write_text(str(error))
    keep("after")
    ranks.leave()
