"""Steps a second that the process reward model scores, against bare passes of the same model.

    python -m benchmarks.reward [--quick] [--checkpoint DIR]

The bare loop gets prepared frames, prompts and tokens, and does nothing but pass them through the
model, in batches of `reward.batch_steps`. `ProcessReward`, the table's scorer, gets trajectories as
they come from the queue: it decodes, resizes, looks prompts up, passes, and answers rewards. It
also tells the allocator to keep memory (`vlarl.allocator`), which speeds up any pass on a
CPU; so there are two bare loops, one as anybody would write it, in a process of its own, and one in
the scorer's process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Report
from vlarl.config import PpoConfig, ProcessRewardConfig
from vlarl.images import encode_jpeg
from vlarl.models.network import pad_prompts
from vlarl.models.openvla.network import load_model
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.process_reward.model import ProcessRewardModel
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl.weights.hub import folder_of
from vlarl_reward.models.process import ProcessReward

INSTRUCTION = "pick up the black bowl on the cookie box and place it on the plate"
STEPS = 32
"""Of an episode."""
_passes: Callable[[], object]
RENDERED = Path(__file__).parents[1] / "tests/golden/images.npz"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few episodes: does it run at all?")
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder or a name; default: an untrained tiny one, 84 px"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
        checkpoint = arguments.checkpoint and folder_of(arguments.checkpoint)
        if checkpoint is None:
            checkpoint = Path(directory) / "tiny"
            make_tiny_checkpoint(checkpoint)
            (checkpoint / "reward_model.json").write_text(
                json.dumps({"version": "bench"}), encoding="utf-8"
            )
        met = measure(checkpoint, 2 if arguments.quick else 8, 2 if arguments.quick else 25)
    sys.exit(0 if met else 1)


def measure(checkpoint: Path, episodes: int, repeats: int) -> bool:
    """Measures and prints the table."""
    config = ProcessRewardConfig(model="rprm", checkpoint=checkpoint)
    reward, network = ProcessReward(config, PpoConfig()), ProcessRewardModel(checkpoint)
    size, ids = network.config.image_size, network.action_ids
    drawn = np.random.default_rng(0)
    trajectories = []
    for _ in range(episodes):
        frames = views(drawn, size)
        tokens = drawn.integers(ids[0], ids[-1], size=(STEPS, 7), endpoint=True)
        trajectories.append(episode(frames, tokens))
    bare = bare_loop(checkpoint, trajectories, config.batch_steps, network)
    # In turns, so that a busy machine is busy for all.
    plain, kept, whole = [], [], []
    encoded = [trajectory.SerializeToString() for trajectory in trajectories]
    with ProcessPoolExecutor(
        1, get_context("spawn"), _prepare, (checkpoint, encoded, config.batch_steps)
    ) as other:
        for _ in range(repeats):
            plain.append(other.submit(_one_loop).result())
            kept.append(seconds(bare))
            whole.append(seconds(lambda: reward.score(trajectories)))
    table = Report("reward", f"Steps judged a second, {size} px, batches of {config.batch_steps}")
    steps = episodes * STEPS
    table.add("bare forward passes", steps / statistics.median(plain), "steps/s")
    table.add(
        "bare passes in the scorer's process",
        steps / statistics.median(kept),
        "steps/s",
        against="bare forward passes",
        note="with its allocator",
    )
    scored = steps / statistics.median(whole)
    note = f"median of {repeats}, {episodes} episodes of {STEPS} steps at once"
    for baseline, least in (
        ("bare forward passes", 0.9),
        ("bare passes in the scorer's process", None),
    ):
        table.add(
            "the scorer, from encoded frames to rewards",
            scored,
            "steps/s",
            against=baseline,
            at_least=least,
            note=note,
        )
    return table.finish()


def views(drawn: np.random.Generator, size: int) -> np.ndarray:
    """Parts of LIBERO's frames, uint8 [STEPS, size, size, 3]: noise would be three times the bytes
    in JPEG.
    """
    rendered = np.load(RENDERED)["rendered"]
    places = drawn.integers(rendered.shape[1] - size + 1, size=(STEPS, 2))
    numbers = drawn.integers(len(rendered), size=STEPS)
    return np.stack(
        [
            rendered[number, top : top + size, left : left + size]
            for number, (top, left) in zip(numbers, places, strict=True)
        ]
    )


def episode(frames: np.ndarray, tokens: np.ndarray) -> rollout_pb2.Trajectory:
    """An episode of these frames and random actions."""
    return rollout_pb2.Trajectory(
        instruction=INSTRUCTION,
        steps=[
            rollout_pb2.Step(
                image=encode_jpeg(frame), action=policy_pb2.Action(token_ids=row.tolist())
            )
            for frame, row in zip(frames, tokens, strict=True)
        ],
        outcome=rollout_pb2.OUTCOME_SUCCESS,
    )


def bare_loop(
    checkpoint: Path,
    trajectories: list[rollout_pb2.Trajectory],
    batch: int,
    network: ProcessRewardModel,
) -> Callable[[], object]:
    """The model alone, over inputs that lie ready."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(
        checkpoint, torch.float32 if device.type == "cpu" else torch.bfloat16, device
    )
    normalize = PixelNormalizer.from_directory(checkpoint)
    prompts = PromptBuilder(checkpoint)
    steps = [step for one in trajectories for step in one.steps]
    pixels = torch.from_numpy(normalize(np.stack([network.frame(step.image) for step in steps])))
    tokens = torch.tensor([list(step.action.token_ids) for step in steps])
    ids, lengths = pad_prompts(
        [prompts.token_ids(INSTRUCTION)] * batch, model.config.pad_token_id, device
    )
    inputs = [
        (pixels[start : start + batch].to(device), tokens[start : start + batch].to(device))
        for start in range(0, len(steps), batch)
    ]

    def passes() -> None:
        with torch.inference_mode():
            for frames, actions in inputs:
                few = len(frames)
                model(frames, ids[:few], lengths[:few], actions, prompts.verdict_ids).logits.cpu()

    return passes


def _prepare(checkpoint: Path, encoded: list[bytes], batch: int) -> None:
    """In the other process: the plain loop."""
    global _passes
    trajectories = [rollout_pb2.Trajectory.FromString(one) for one in encoded]
    _passes = bare_loop(checkpoint, trajectories, batch, ProcessRewardModel(checkpoint))
    _passes()


def _one_loop() -> float:
    """In the other process: how long it takes."""
    return seconds(_passes)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
