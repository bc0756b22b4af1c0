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
from typing import Literal

import numpy as np
import torch

from benchmarks.operations import Operations, least
from benchmarks.report import Report
from benchmarks.sizing import openvla_7b
from vlarl.config import CriticConfig, LoraConfig, PpoConfig, TrainerConfig
from vlarl.images import encode_jpeg
from vlarl.learning.factors import MergedLayers
from vlarl.learning.ranks import Ranks
from vlarl.learning.sharding import distribute
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.network import OpenVLA
from vlarl.models.openvla.processor import Processor
from vlarl.models.openvla.tiny import libero_instructions, make_tiny_checkpoint
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.batch import Experience
from vlarl_trainer.learner import Learner

ACTIONS = 8
"""Of an episode."""
RANK = 8
REPEATS = 3
PROMPT = 40
"""Tokens of a prompt with OpenVLA's own tokenizer; LIBERO's are between 25 and 45."""
ENOUGH = 1 / 1.1
"""At most a tenth more than the least possible."""
PRODUCT = "matrix product"


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
        product = matrix_product()
        threads = f"{torch.get_num_threads()} threads"
        report.add(PRODUCT, product, "GFLOP/s", note=f"1024 x 1024 x 1024, float32; {threads}")
        for features in ("base", "policy"):
            learn(report, checkpoint, config, experience, features)
    seven_b(report)
    sys.exit(0 if report.finish() else 1)


def add(
    report: Report,
    name: str,
    done: float,
    needed: float,
    unit: str,
    *,
    at_least: float | None = None,
    note: str = "",
) -> None:
    """Two rows: what is done, and the least possible against it."""
    report.add(name, done, unit, note=note)
    report.add(f"{name}: the least possible", needed, unit, against=name, at_least=at_least)


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


def trainer_config(features: Literal["base", "policy"]) -> TrainerConfig:
    """An update that isn't cut short, and a critic that takes no time."""
    return TrainerConfig(
        dtype="float32",
        ppo=PpoConfig(mini_batch=64, micro_batch=16, kl_stop=0.0),
        lora=LoraConfig(rank=RANK),
        critic=CriticConfig(features=features, warmup_iterations=0),
    )


def least_of(config: OpenVLAConfig, processor: Processor, experience: Experience) -> int:
    """Operations of an iteration: a pass without gradient and one with it for each action, and one
    for each final state that a return is bootstrapped from.
    """
    needed = 0
    for trajectory in experience.trajectories:
        prompt = len(processor.prompt(trajectory.instruction))
        one = least(config, RANK, prompt, config.spec.action_dim)
        needed += len(trajectory.steps) * (one.forward + one.update)
        if trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT:
            needed += least(config, RANK, prompt, 1).forward
    return needed


def learn(
    report: Report,
    checkpoint: Path,
    config: OpenVLAConfig,
    experience: Experience,
    features: Literal["base", "policy"],
) -> None:
    """A small policy on this machine."""
    needed = least_of(config, Processor(checkpoint, config, center_crop=False), experience)
    samples = sum(len(trajectory.steps) for trajectory in experience.trajectories)
    learner = Learner(
        checkpoint,
        trainer_config(features),
        center_crop=False,
        seed=7,
        ranks=Ranks.from_environment(),
    )
    with Operations() as counted:
        learner.learn(experience)
    name = f"small policy, critic.features = {features}"
    add(
        report,
        f"{name}: operations",
        counted.of_the_policy / samples / 1e9,
        needed / samples / 1e9,
        "GFLOP/action",
        at_least=ENOUGH if features == "policy" else None,
        note=f"{samples} actions",
    )
    runs = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        looking = learner.learn(experience)["seconds_inference"]
        runs.append((looking, time.perf_counter() - began - looking))
    looking, updating = np.median(runs, axis=0)
    report.add(f"{name}: features and log-probs", samples / looking, "actions/s")
    report.add(f"{name}: update", samples / updating, "actions/s", note="the critic's, too")
    speed = needed / (looking + updating) / 1e9
    report.add(f"{name}: least operations", speed, "GFLOP/s", against=PRODUCT)


def seven_b(report: Report) -> None:
    """OpenVLA-7B, on tensors without memory."""
    config = openvla_7b()
    rank, tokens, alone = (
        LoraConfig().rank,
        config.spec.action_dim,
        Ranks.alone(torch.device("cpu")),
    )
    one = least(config, rank, PROMPT, tokens)
    needed = one.forward + one.update
    updates = {}
    for again in (False, True):
        with torch.device("meta"):
            model = OpenVLA(config).requires_grad_(False)
            with torch.no_grad():
                plain = passed(model, config, 1)
            MergedLayers(model, LoraConfig(), 0, list(lora_layers(config)))
            with torch.no_grad():
                forward = passed(model, config, tokens)
        distribute(model, alone, torch.bfloat16, activation_checkpointing=again)
        with torch.device("meta"):
            updates[again] = passed(model, config, tokens)
    for features, looking in (("base", plain + forward), ("policy", forward)):
        for again, how in ((True, "computed again"), (False, "kept")):
            add(
                report,
                f"7B, critic.features = {features}, activations {how}",
                (looking + updates[again]) / 1e12,
                needed / 1e12,
                "TFLOP/action",
                at_least=ENOUGH if features == "policy" and not again else None,
                note=f"prompts of {PROMPT} tokens",
            )


def passed(model: OpenVLA, config: OpenVLAConfig, action_tokens: int) -> int:
    """Operations of one sample's pass on the device that is set, with gradient where that is on."""
    size = config.spec.image_size
    with Operations() as counted:
        output = model(
            torch.empty(1, 3 * len(config.towers), size, size),
            torch.zeros(1, PROMPT, dtype=torch.int64),
            torch.full((1,), PROMPT),
            torch.zeros(1, action_tokens, dtype=torch.int64),
        )
        if output.logits.requires_grad:
            output.logits.sum().backward()
    return counted.of_the_policy


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
