"""What an iteration's learning computes, against the least possible, and how fast it is.

    python -m benchmarks.learner [--quick]

Operations are counted by torch's own counter while a small policy learns, in all of its passes,
and divided by the actions learned from. The least possible is arithmetic, in operations.py: one
pass without gradient for each action and one with gradient in each epoch. Prompts are those of
LIBERO's 130 tasks, so they differ in length. OpenVLA-7B's rows are the same passes at its sizes,
counted on tensors that have no memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.operations import Operations, least
from benchmarks.report import Report
from vlarl.config import CriticConfig, LoraConfig, PpoConfig, TrainerConfig
from vlarl.images import encode_jpeg
from vlarl.learning.ranks import Ranks
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.processor import Processor
from vlarl.models.openvla.tiny import libero_instructions, make_tiny_checkpoint
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.batch import Experience
from vlarl_trainer.learner import Learner

ACTIONS = 8
"""Of an episode."""
RANK = 8


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    quick = parser.parse_args().quick
    report = Report("learner", "An iteration's learning against the least possible")
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as folder:
        checkpoint = Path(folder)
        config = make_tiny_checkpoint(
            checkpoint, tower_dim=128, tower_depth=5, text_dim=256, text_layers=4
        )
        experience = made_up(config, episodes=8 if quick else 48)
        learn(report, checkpoint, config, experience)
    sys.exit(0 if report.finish() else 1)


def made_up(config: OpenVLAConfig, episodes: int) -> Experience:
    """Episodes of random actions, each of another task; every other one is a success.

    Their version isn't the trainer's, so the policy server's log-probs aren't compared.
    """
    drawn = np.random.default_rng(0)
    instructions = drawn.permutation(libero_instructions())
    size, ids = config.spec.image_size, config.spec.action_ids
    trajectories = []
    for index in range(episodes):
        frames = [
            encode_jpeg(drawn.integers(256, size=(size, size, 3), dtype=np.uint8))
            for _ in range(ACTIONS + 1)
        ]
        tokens = drawn.integers(ids.start, ids.stop, size=(ACTIONS, config.spec.action_dim))
        logprobs = [-float(np.log(len(ids)))] * config.spec.action_dim
        total = [0.0] * (ACTIONS - 1) + [float(index % 2 == 0)]
        trajectories.append(
            rollout_pb2.Trajectory(
                instruction=instructions[index % len(instructions)],
                steps=[
                    rollout_pb2.Step(
                        image=frame,
                        action=policy_pb2.Action(token_ids=row.tolist(), logprobs=logprobs),
                    )
                    for frame, row in zip(frames, tokens, strict=False)
                ],
                final_image=frames[-1],
                outcome=rollout_pb2.OUTCOME_SUCCESS
                if total[-1]
                else rollout_pb2.OUTCOME_TIME_LIMIT,
                scores=rollout_pb2.RewardScores(model="outcome", sparse=total, total=total),
            )
        )
    return Experience(0, 1, trajectories)


def trainer_config() -> TrainerConfig:
    """An update that isn't cut short, and a critic that takes no time."""
    return TrainerConfig(
        dtype="float32",
        ppo=PpoConfig(mini_batch=64, micro_batch=16, kl_stop=0.0),
        lora=LoraConfig(rank=RANK),
        critic=CriticConfig(warmup_iterations=0),
    )


def learn(report: Report, checkpoint: Path, config: OpenVLAConfig, experience: Experience) -> None:
    """A small policy on this machine."""
    trainer = trainer_config()
    processor = Processor(checkpoint, config, center_crop=False)
    dim = config.spec.action_dim
    steps = [(len(processor.prompt(t.instruction)), len(t.steps)) for t in experience.trajectories]
    samples = sum(count for _, count in steps)
    needed = sum(
        count * (own.forward + trainer.ppo.epochs * own.update)
        for own, count in ((least(config, RANK, length, dim), count) for length, count in steps)
    )
    learner = Learner(
        checkpoint, trainer, center_crop=False, seed=7, ranks=Ranks.from_environment()
    )
    with Operations() as counted:
        learner.learn(experience)
    done = "small policy, as configured"
    report.add(
        done, counted.of_the_policy / samples / 1e9, "GFLOP/action", note=f"{samples} actions"
    )
    report.add(
        f"{done}: the least possible",
        needed / samples / 1e9,
        "GFLOP/action",
        against=done,
        at_least=1 / 1.1,
    )
    product = matrix_product()
    report.add("matrix product", product, "GFLOP/s", note="1024 x 1024 x 1024, float32")
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        inference = learner.learn(experience)["seconds_inference"]
        runs.append((inference, time.perf_counter() - began - inference))
    inference, update = np.median(runs, axis=0)
    report.add(f"{done}: features and log-probs", samples / inference, "actions/s")
    report.add(
        f"{done}: update",
        trainer.ppo.epochs * samples / update,
        "actions/s",
        note="critic included",
    )
    report.add(
        f"{done}: least operations",
        needed / (inference + update) / 1e9,
        "GFLOP/s",
        against="matrix product",
    )


def matrix_product(size: int = 1024, repeats: int = 10) -> float:
    """GFLOP/s of a float32 product, median."""
    a, b = (torch.randn(size, size) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.median(seconds)) / 1e9


if __name__ == "__main__":
    main()
