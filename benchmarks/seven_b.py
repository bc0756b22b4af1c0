"""A model of OpenVLA-7B's size on one GPU: what learning costs there, and what bfloat16 does to it.

    python -m benchmarks.seven_b [--quick] [--episodes 4] [--actions 32]

The weights are random: neither time nor memory depends on what they are. Work is counted in
floating-point operations by torch's own counter, activations computed twice counted twice, and
compared with what the same GPU reaches in a large matrix product. Settings are those of
configs/libero-7b.toml and configs/sft-7b.toml; the latter runs as `vlarl sft` itself.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Report
from benchmarks.sizing import original_sizes
from vlarl.config import RunConfig, TrainerConfig, load_config
from vlarl.data.dataset import Capture, Frames, TaskSamples, write_task
from vlarl.images import encode_jpeg
from vlarl.json_lines import read_lines
from vlarl.learning.ranks import Ranks
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.network import OpenVLA, generate_actions, load_model
from vlarl.models.openvla.processor import Processor
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl.weights.checkpoint import save_tensors
from vlarl_trainer.batch import Experience, Observations, build_batch
from vlarl_trainer.learner import Learner

CUDA = torch.device("cuda")
INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"
GIB = 2**30
SFT_STEPS = 3


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny model: does it run at all?")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--actions", type=int, default=32, help="of an episode")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device")
    table = Report("seven_b", "A model of OpenVLA-7B's size on one GPU, bfloat16")
    try:
        with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
            measure(table, Path(directory), arguments)
    finally:
        table.finish()


def measure(table: Report, directory: Path, arguments: argparse.Namespace) -> None:
    """All measurements, in an order that each has the GPU for itself."""
    progress("a large matrix product")
    table.add("matrix product", matrix_product(), "TFLOP/s", note="8192 x 8192 x 8192, bfloat16")
    progress("a checkpoint of random weights")
    checkpoint = directory / "checkpoint"
    make_checkpoint(checkpoint, full_size=not arguments.quick)
    config = load_config(Path("configs/libero-7b.toml"), [f"policy.checkpoint={checkpoint}"])
    progress("acting")
    experience = act(table, config, arguments.episodes, arguments.actions)
    learn(table, config, experience)
    progress("fine-tuning: vlarl sft")
    fine_tune(table, checkpoint, directory)


def progress(what: str) -> None:
    """Says what begins now."""
    print(time.strftime("%H:%M:%S"), what, flush=True)


def matrix_product(size: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of a bfloat16 product of random square matrices, median."""
    a, b = (torch.randn(size, size, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        began = now()
        torch.mm(a, b)
        seconds.append(now() - began)
    return 2 * size**3 / float(np.median(seconds[3:])) / 1e12


def now() -> float:
    """The time when the GPU is done with all it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def make_checkpoint(directory: Path, *, full_size: bool) -> None:
    """A tiny checkpoint, then the original's sizes and random weights of theirs."""
    make_tiny_checkpoint(directory, image_size=224)
    if full_size:
        save_tensors(directory, random_tensors(original_sizes(directory)))


def random_tensors(config: OpenVLAConfig) -> Iterator[tuple[str, Tensor]]:
    """Weights that keep the variance of what goes through them, in bfloat16."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in OpenVLA(config).state_dict().items()}
    torch.manual_seed(0)
    for key, shape in shapes.items():
        if len(shape) == 1:
            value = torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)
        else:
            value = torch.randn(shape, device=CUDA) / shape[-1] ** 0.5
        yield key, value.to("cpu", torch.bfloat16)


def act(table: Report, config: RunConfig, episodes: int, actions: int) -> Experience:
    """Episodes whose actions the model drew token by token, as a policy server does."""
    checkpoint = config.policy.checkpoint
    began = now()
    model = load_model(checkpoint, torch.bfloat16, CUDA)
    table.add("checkpoint to GPU", now() - began, "s")
    parameters = sum(each.numel() for each in model.parameters())
    table.add("parameters", parameters / 1e9, "10^9")
    table.add("memory: weights", torch.cuda.memory_allocated() / GIB, "GiB")
    processor = Processor(checkpoint, model.config, center_crop=True)
    generator = torch.Generator(CUDA).manual_seed(0)
    pixels = np.random.default_rng(0)
    trajectories = []
    for index in range(episodes):
        frames = [
            encode_jpeg(pixels.integers(256, size=(256, 256, 3), dtype=np.uint8))
            for _ in range(actions + 1)
        ]
        inputs = processor.batch(
            np.stack([processor.frame(frame) for frame in frames[:-1]]),
            [processor.prompt(INSTRUCTION)] * actions,
            CUDA,
        )
        drawn = generate_actions(
            model, inputs.pixel_values, inputs.prompt_ids, config.trainer.temperature, generator
        )
        taken = zip(frames, drawn.token_ids.tolist(), drawn.logprobs.tolist(), strict=False)
        trajectories.append(trajectory(index, config.trainer, list(taken), frames[-1]))
    # The first iteration after the critic's warm-up.
    return Experience(config.trainer.critic.warmup_iterations, 1, trajectories)


def trajectory(
    index: int,
    config: TrainerConfig,
    taken: list[tuple[bytes, list[int], list[float]]],
    final: bytes,
) -> rollout_pb2.Trajectory:
    """An episode; every other one succeeds."""
    total = [0.0] * (len(taken) - 1) + [float(index % 2 == 0)]
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(
            episode_id=f"bench:{index}",
            run_id="bench",
            purpose=rollout_pb2.PURPOSE_TRAINING,
            iteration=config.critic.warmup_iterations,
            task=rollout_pb2.Task(suite="libero_spatial", index=0),
            temperature=config.temperature,
        ),
        instruction=INSTRUCTION,
        steps=[
            rollout_pb2.Step(
                image=frame,
                action=policy_pb2.Action(
                    token_ids=tokens,
                    logprobs=logprobs,
                    values=[0.0] * len(tokens),
                    policy_version=1,
                ),
            )
            for frame, tokens, logprobs in taken
        ],
        final_image=final,
        outcome=rollout_pb2.OUTCOME_SUCCESS if total[-1] else rollout_pb2.OUTCOME_TIME_LIMIT,
        scores=rollout_pb2.RewardScores(model="outcome", sparse=total, total=total),
    )


def learn(table: Report, config: RunConfig, experience: Experience) -> None:
    """One iteration's learning, twice: the first call pays for what is set up once."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    checkpoint, trainer = config.policy.checkpoint, config.trainer
    progress("loading the trainer")
    ranks = Ranks.from_environment()
    learner = Learner(checkpoint, trainer, center_crop=True, seed=7, ranks=ranks)
    table.add("memory: trainer at rest", torch.cuda.memory_allocated() / GIB, "GiB")
    progress("learning")
    first = learner.learn(experience)
    batch = build_batch(experience)
    samples = len(batch.token_ids)
    gap = first["logprob_gap"]
    table.add("largest log-prob gap", gap, "nats", note=f"{samples} actions, the bound is 0.3")
    base_features = learner.algorithm.view == "base"
    counts = operations(learner, checkpoint, ranks, experience, base_features=base_features)
    progress("learning again")
    # Other weights than those that acted by now, so the second call must not compare.
    began = now()
    report = learner.learn(stale(experience))
    seconds = now() - began
    updating = seconds - report["seconds_inference"]
    passes = trainer.chosen.epochs * samples
    # Of the first call: counting operations keeps more than learning does.
    peak = first["gpu_memory_bytes"] / GIB
    table.add(
        "memory: learning, at most", peak, "GiB", note=f"micro-batch {trainer.chosen.micro_batch}"
    )
    table.add(
        "features and log-probs",
        samples / report["seconds_inference"],
        "actions/s",
        note=f"critic.features = {learner.algorithm.view}, "
        f"{counts[0] * 1e-12 / samples:.3g} TFLOP an action",
    )
    table.add(
        "features and log-probs in operations",
        counts[0] * 1e-12 / report["seconds_inference"],
        "TFLOP/s",
        against="matrix product",
    )
    table.add(
        "policy update",
        passes / updating,
        "actions/s",
        note=f"{learner.placement}; {counts[1] * 1e-12 / samples:.3g} TFLOP an action",
    )
    table.add(
        "the policy update in operations",
        trainer.chosen.epochs * counts[1] * 1e-12 / updating,
        "TFLOP/s",
        against="matrix product",
    )
    publish(table, learner)
    ranks.leave()


def stale(experience: Experience) -> Experience:
    """The same episodes, for a trainer whose weights have moved on."""
    return Experience(experience.iteration, experience.version + 1, experience.trajectories)


def operations(
    learner: Learner, checkpoint: Path, ranks: Ranks, experience: Experience, *, base_features: bool
) -> tuple[int, int]:
    """Floating-point operations of all samples: without gradient and, once, with one.

    base_features: whether the critic sees the base policy's, in a pass of their own.
    """
    batch = build_batch(experience)
    processor = Processor(checkpoint, learner.policy.config, center_crop=True)
    observations = Observations(batch.frames, batch.instructions, processor, ranks.device)
    few = np.arange(8)
    tokens = torch.from_numpy(batch.token_ids[few]).to(ranks.device)
    with FlopCounterMode(display=False) as looking, torch.no_grad():
        if base_features:
            learner.policy.look(observations[few], tokens, 1.5, factors=False)
        learner.policy.logprobs(observations[few], tokens, 1.5)
    with FlopCounterMode(display=False) as learning:
        logprobs, _ = learner.policy.logprobs(observations[few], tokens, 1.5)
        torch.autograd.backward(logprobs.sum())
    scale = len(batch.token_ids) / len(few)
    return int(looking.get_total_flops() * scale), int(learning.get_total_flops() * scale)


def publish(table: Report, learner: Learner) -> None:
    """What happens between learning and the policy server's next action, on the trainer's side."""
    progress("gathering and merging")
    began = now()
    factors = learner.snapshot().factors
    table.add("factors gathered", now() - began, "s")
    size = sum(a.nbytes + b.nbytes for a, b in factors.values())
    table.add("factors sent", size / 2**20, "MiB", note="float32, each swap")
    began = now()
    learner.policy.checksums(learner.policy.layers)
    table.add("checksums of all merged weights", now() - began, "s", note='merged_check = "full"')


def fine_tune(table: Report, checkpoint: Path, directory: Path) -> None:
    """Three steps of `vlarl sft configs/sft-7b.toml`, and the merged checkpoint that it writes."""
    gc.collect()
    torch.cuda.empty_cache()
    pixels = np.random.default_rng(1)
    frames = [pixels.integers(256, size=(256, 256, 3), dtype=np.uint8) for _ in range(64)]
    actions = pixels.uniform(-1, 1, size=(64, 7)).astype(np.float32)
    actions[:, 6] = actions[:, 6] > 0
    write_task(
        directory / "data",
        Capture("agentview", 256, None, "faithful", 1),
        TaskSamples(
            suite="libero_spatial",
            index=0,
            instruction=INSTRUCTION,
            frames=Frames.of([encode_jpeg(frame) for frame in frames]),
            actions=actions,
            episodes=np.repeat(np.arange(8, dtype=np.int32), 8),
            poses=np.zeros((64, 2), np.float32),
            pose_names=("bowl_x", "bowl_y"),
        ),
    )
    run_dir = directory / "sft"
    overrides = (
        f"checkpoint={checkpoint}",
        f'data.datasets=["{directory / "data"}"]',
        f"training.steps={SFT_STEPS}",
        "training.log_every=1",
        "data.held_out=0.2",
    )
    command = [sys.executable, "-m", "vlarl", "sft", "configs/sft-7b.toml"]
    command += ["--run-dir", str(run_dir)]
    command += [part for override in overrides for part in ("--set", override)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    speed = max(float(line["samples_per_second"]) for line in lines)
    table.add("SFT", speed, "samples/s", note="LoRA of rank 32, mini-batch 128, micro-batch 16")
    peak = float(lines[-1]["gpu_memory_bytes"]) / GIB
    table.add("memory: SFT, at most", peak, "GiB")
    table.add("SFT of 3 steps, whole command", seconds, "s", note="merged checkpoint written")
    load_model(run_dir / "checkpoint", torch.bfloat16, CUDA)
    shutil.rmtree(run_dir)


if __name__ == "__main__":
    main()
