"""Actions a second: through gRPC, in-process vLLM, and eager generation one at a time.

    python -m benchmarks.policy [--quick] [--checkpoint DIR]

Everybody gets the same JPEG frames and instructions and answers with sampled tokens and log-probs.
In-process vLLM is our model in vLLM's own synchronous engine with the server's arguments, batch
after batch, without server, processes or wire; it decodes the same frames. Eager generation is the
plain torch model with a key-value cache and batch 1, as Hugging Face-style servers do.

Two comparisons at 32: engines that may use every core, where server and clients must take theirs
from the engine's; and engines of one thread, where the rest of the machine is left to them, as on
any machine with more cores than the engine uses, or with a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

# Puts the server's settings of its threads into the environment, where the baselines' processes
# find them before they import numpy and torch.
import vlarl_policy  # noqa: F401
from benchmarks.policy_load import KEY, Load, observations, served
from benchmarks.report import Report
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.config import PolicyConfig
from vlarl.images import decode_image, prepare_image
from vlarl.models.base import Serving
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.registry import policy_family
from vlarl.models.serving import Observation
from vlarl.models.spec import PolicySpec
from vlarl.weights.hub import folder_of

UNIT = "actions/s"
BATCHES = (1, 8, 32)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder or a name; default: an untrained one of 224 px"
    )
    parser.add_argument("--baseline", choices=sorted(BASELINES), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds = 6.0 if arguments.quick else 30.0
    if arguments.baseline:
        print(BASELINES[arguments.baseline](arguments.checkpoint, arguments.batch, seconds))
        return
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
        checkpoint = arguments.checkpoint and folder_of(arguments.checkpoint)
        if checkpoint is None:
            checkpoint = Path(directory) / "tiny"
            make_tiny_checkpoint(checkpoint, image_size=224)
        met = asyncio.run(compare(checkpoint, Path(directory), seconds, arguments.quick))
    sys.exit(0 if met else 1)


async def compare(checkpoint: Path, directory: Path, seconds: float, quick: bool) -> bool:
    """Measures everything and prints the table; False where a wanted ratio is missed."""
    model = OpenVLAConfig.from_directory(checkpoint)
    most = max(BATCHES)
    report = Report(
        "policy", f"Actions a second, {model.spec.image_size} px, {model.num_patches} image tokens"
    )
    arguments = ["--quick"] if quick else []
    report.add("eager", baseline("eager", checkpoint, 1, arguments), UNIT, note="plain torch, x1")
    for batch in BATCHES:
        name = f"in-process vLLM x{batch}"
        report.add(name, baseline("vllm", checkpoint, batch, arguments), UNIT)
    async with served(checkpoint, directory, most) as address:
        for batch in BATCHES:
            load, spent = await loaded(address, batch, seconds)
            speed = load.speed
            against = f"in-process vLLM x{batch}"
            wanted = 0.9 if batch == most else None
            report.add(f"gRPC, {batch} clients", speed, UNIT, against=against, at_least=wanted)
    report.add(f"gRPC, {most} clients ", speed, UNIT, against="eager")
    add_cpu_time(report, spent, load, "")
    alone = f"in-process vLLM x{most}, 1 thread"
    report.add(alone, baseline("vllm", checkpoint, most, arguments, threads=1), UNIT)
    (directory / "one").mkdir()
    async with served(checkpoint, directory / "one", most, threads=1) as address:
        load, spent = await loaded(address, most, seconds)
    name = f"gRPC, {most} clients, 1 thread"
    report.add(name, load.speed, UNIT, against=alone, at_least=0.9)
    add_cpu_time(report, spent, load, ", 1 thread")
    return report.finish()


async def loaded(address: str, clients: int, seconds: float) -> tuple[Load, Counter[str]]:
    """A warm load of `seconds`, and the CPU time that it took."""
    async with AsyncPolicyClient(address, timeout_seconds=60) as client:
        await Load(client, clients).run(seconds / 3)
        load, before = Load(client, clients), cpu_seconds()
        await load.run(seconds)
        spent = cpu_seconds() - before
    if load.failed:
        raise RuntimeError(f"{load.failed} requests failed")
    return load, spent


def add_cpu_time(report: Report, spent: Counter[str], load: Load, engine: str) -> None:
    """Adds what an action costs of each process's time; `engine` names the engine's setting."""
    for process in sorted(spent):
        milliseconds = 1000 * spent[process] / len(load.latencies)
        note = f"{load.clients} clients"
        report.add(f"CPU time, {process}{engine}", milliseconds, "ms an action", note=note)


def cpu_seconds() -> Counter[str]:
    """CPU time so far of the clients (this process), of the server, and of its engine."""
    spent = Counter({"clients": time.process_time()})
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        engine = "EngineCore" in " ".join(child.cmdline())
        spent["engine" if engine else "server"] += times.user + times.system
    return spent


def baseline(
    name: str, checkpoint: Path, batch: int, arguments: list[str], threads: int | None = None
) -> float:
    """A baseline's actions a second, measured in a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.policy", "--checkpoint", str(checkpoint)]
    command += ["--baseline", name, "--batch", str(batch), *arguments]
    # No second process, and threads as the server's engine has them.
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


def timed(step: Callable[[], int], seconds: float) -> float:
    """Actions a second of a step that returns how many it made."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds / 3:
        step()
    began, actions = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        actions += step()
    return actions / elapsed


def vllm_loop(checkpoint: Path, batch: int, seconds: float) -> float:
    """VLLM's synchronous engine on batch after batch; a chunk is one answer."""
    from vllm.v1.engine.llm_engine import LLMEngine

    from vlarl_policy.vllm_engine import engine_args

    family = policy_family(checkpoint)
    config, spec = PolicyConfig(checkpoint=checkpoint, max_batch=max(BATCHES)), family.spec
    serving = family.serving()
    args = replace(engine_args(config, serving), worker_extension_cls="")
    engine = LLMEngine.from_engine_args(args)
    processor = family.processor(spec.center_crop)
    statistics = spec.statistics(KEY)
    pairs, rest = observations(batch), [0.0] * spec.proprio_dim

    # A name twice, and the engine would take the image's features from its encoder cache.
    names = map(str, itertools.count())

    def step() -> int:
        for image, instruction in pairs:
            name, images = next(names), [image] * len(spec.cameras)
            encoded = processor.encode(Observation(images, instruction, rest, KEY))
            engine.add_request(name, serving.prompt(encoded, name), sampling(serving, spec))
        finished = 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    processor.actions(token_ids(serving, output), statistics)
                    finished += 1
        return finished

    return timed(step, seconds)


def sampling(serving: Serving, spec: PolicySpec) -> object:
    """An answer's parameters, at temperature 1."""
    from vllm import SamplingParams

    if serving.runner == "pooling":
        return serving.parameters(temperature=1.0, seed=None)
    return SamplingParams(
        temperature=1.0,
        max_tokens=spec.action_dim,
        ignore_eos=True,
        allowed_token_ids=list(spec.action_ids),
        logprobs=0,
        detokenize=False,
    )


def token_ids(serving: Serving, output: Any) -> list[int]:  # noqa: ANN401 - vLLM's
    """Of a finished answer."""
    if serving.runner == "pooling":
        return serving.sampled(output).token_ids
    return list(output.outputs[0].token_ids)


def eager_loop(checkpoint: Path, batch: int, seconds: float) -> float:
    """The plain torch model, token by token."""
    from vlarl.models.openvla.network import generate_actions, load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model(checkpoint, dtype, device)
    normalizer = PixelNormalizer.from_directory(checkpoint)
    prompts = PromptBuilder(checkpoint)
    image, instruction = observations(1)[0]
    statistics = model.config.spec.statistics(KEY)
    tokens = model.config.action_tokenizer
    assert batch == 1

    def step() -> int:
        pixels = prepare_image(
            decode_image(image), model.config.spec.image_size, model.config.spec.center_crop
        )
        drawn = generate_actions(
            model,
            torch.from_numpy(normalizer(pixels[None])).to(device),
            torch.tensor([prompts.token_ids(instruction)], device=device),
            temperature=1.0,
        )
        normalized = tokens.decode(drawn.token_ids.cpu().numpy())
        statistics.unnormalize(normalized)
        return len(normalized)

    return timed(step, seconds)


BASELINES: dict[str, Callable[[Path, int, float], float]] = {
    "vllm": vllm_loop,
    "eager": eager_loop,
}

if __name__ == "__main__":
    main()
