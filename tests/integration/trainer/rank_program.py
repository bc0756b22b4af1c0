"""What each rank of test_trainer_ranks.py runs: two iterations' learning, gathered on rank 0.

The folder holds 0.bin and 1.bin, the iterations' experience; rank 0 adds its metrics and tensors.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.integration.trainer.trainer_samples import trainer_config
from vlarl.learning.ranks import World
from vlarl_trainer.batch import Experience
from vlarl_trainer.learner import Learner


def main(checkpoint: Path, folder: Path, micro_batch: int, dtype: str) -> None:
    world = World.from_environment()
    base = trainer_config()
    ppo = base.ppo.model_copy(update={"micro_batch": micro_batch, "mini_batch": 7})
    changes = {"ppo": ppo, "activation_checkpointing": world.size > 1, "dtype": dtype}
    config = base.model_copy(update=changes)
    learner = Learner(checkpoint, config, center_crop=False, seed=3, world=world)
    metrics = []
    for iteration in range(2):
        encoded = (folder / f"{iteration}.bin").read_bytes() if world.first else b""
        experience = Experience.from_bytes(world.broadcast_bytes(encoded))
        metrics.append(learner.learn(experience))
    snapshot = learner.snapshot()
    # Taken over again, sharded, what was gathered must not change.
    learner.restore(_broadcast(world, snapshot.tensors))
    again = learner.snapshot()
    if world.first:
        assert all(torch.equal(v, again.tensors[k]) for k, v in snapshot.tensors.items())
        (folder / f"metrics-{world.size}.json").write_text(json.dumps(metrics))
        save_file(snapshot.tensors, folder / f"tensors-{world.size}.safetensors")
    world.leave()


def _broadcast(world: World, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load, save

    return load(world.broadcast_bytes(save(tensors) if world.first else b""))
