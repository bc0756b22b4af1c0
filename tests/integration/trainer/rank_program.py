"""What each rank of test_trainer_ranks.py runs: two iterations' learning, gathered on rank 0.

The folder holds 0.bin and 1.bin, the iterations' experience; rank 0 adds its metrics and tensors.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from tests.integration.trainer.trainer_samples import trainer_config
from vlarl.learning.node import NodeMemory
from vlarl.learning.ranks import Ranks
from vlarl.queue.entries import Delivery
from vlarl_trainer.batch import Experience
from vlarl_trainer.learner import Learner
from vlarl_trainer.rollouts.frames import FrameFile

FEATURES = {"shard": "base", "replicate": "policy"}
"""Either place of the weights meets either view of the critic's once."""


def main(checkpoint: Path, folder: Path, micro_batch: int, dtype: str, sharding: str) -> None:
    ranks = Ranks.from_environment()
    base = trainer_config()
    ppo = base.ppo.model_copy(update={"micro_batch": micro_batch, "mini_batch": 7})
    critic = base.critic.model_copy(update={"features": FEATURES[sharding]})
    changes = {"activation_checkpointing": ranks.size > 1, "dtype": dtype, "sharding": sharding}
    config = base.model_copy(update={"ppo": ppo, "critic": critic, **changes})
    learner = Learner(checkpoint, config, center_crop=False, seed=3, ranks=ranks)
    sharded = any(isinstance(one, DTensor) for one in learner.policy.named_parameters().values())
    assert sharded == (ranks.size > 1 and sharding == "shard")
    metrics = []
    for iteration in range(2):
        encoded = (folder / f"{iteration}.bin").read_bytes() if ranks.first else b""
        metrics.append(learner.learn(_dealt(ranks, encoded)))
    snapshot = learner.snapshot()
    # Taken over again, sharded, what was gathered must not change.
    learner.restore(_broadcast(ranks, snapshot.tensors))
    again = learner.snapshot()
    if ranks.first:
        assert all(torch.equal(v, again.tensors[k]) for k, v in snapshot.tensors.items())
        (folder / f"metrics-{ranks.size}.json").write_text(json.dumps(metrics))
        save_file(snapshot.tensors, folder / f"tensors-{ranks.size}.safetensors")
    ranks.leave()


def _dealt(ranks: Ranks, encoded: bytes) -> Experience:
    """Rank 0's experience, on every rank; where there are two, with frames in shared memory."""
    if ranks.size == 1:
        return Experience.from_bytes(encoded)
    memory = NodeMemory(ranks)
    if not ranks.first:
        return Experience.from_bytes(ranks.broadcast_bytes(), memory.share(None))
    whole, file = Experience.from_bytes(encoded), FrameFile()
    moved = [
        file.move(Delivery(str(number), "scored", "trainer", "trainer", one, 1, {}))
        for number, one in enumerate(whole.trajectories)
    ]
    frames = file.frames(moved)
    rest = [delivery.message for delivery in moved]
    experience = Experience(whole.iteration, whole.version, rest, frames)
    ranks.broadcast_bytes(experience.to_bytes())
    memory.share(frames.file)
    return experience


def _broadcast(ranks: Ranks, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load, save

    return load(ranks.broadcast_bytes(save(tensors) if ranks.first else b""))
