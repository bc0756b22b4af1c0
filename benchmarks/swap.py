"""Swapping weights under load: what clients notice, what it costs, against copying the bytes.

    python -m benchmarks.swap [--quick] [--checkpoint DIR]

While 8 clients ask for actions, 20 LoRA adapters are streamed to the server one after the other.
The pause that clients see is the longest answer during a swap less the usual one. The yardstick is
a plain copy in memory of the merged weights, which is the least that a swap has to do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.policy_load import Load, random_adapter, served
from benchmarks.report import Report
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.channel import open_channel
from vlarl.weights.adapter import update_requests

SWAPS = 20
CLIENTS = 8
RANK = 32
EXCHANGE = "of these, after the engine's step had ended"


@dataclass(frozen=True)
class Swap:
    """One swap: when it began and ended by the publisher's clock, and the server's answer."""

    began: float
    ended: float
    answer: pb.UpdateWeightsResponse


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a model of 1 M parameters, not 150 M")
    parser.add_argument("--checkpoint", type=Path, help="default: an untrained one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = Path(directory) / "tiny"
            size = {} if arguments.quick else {"text_dim": 1024, "text_layers": 10}
            make_tiny_checkpoint(checkpoint, image_size=56, **size)
        met = asyncio.run(measure(checkpoint, Path(directory)))
    sys.exit(0 if met else 1)


async def measure(checkpoint: Path, directory: Path) -> bool:
    """Measures and prints the table; False where a request failed."""
    async with (
        served(checkpoint, directory, CLIENTS) as address,
        AsyncPolicyClient(address, timeout_seconds=120) as client,
    ):
        load = Load(client, CLIENTS)
        stop = asyncio.Event()
        asking = asyncio.create_task(load.run(None, stop))
        swaps = await swap_under_load(address, checkpoint, load)
        stop.set()
        await asking
    return report(checkpoint, load, swaps)


async def swap_under_load(address: str, checkpoint: Path, load: Load) -> list[Swap]:
    """Streams the adapters, each after some more answers to the clients."""
    swaps = []
    async with open_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for version in range(1, SWAPS + 1):
            requests = list(update_requests(random_adapter(checkpoint, version, RANK)))
            answered = len(load.latencies)
            while len(load.latencies) < answered + 3 * CLIENTS:
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            answer = await stub.UpdateWeights(iter(requests))
            swaps.append(Swap(began, time.perf_counter(), answer))
    return swaps


def report(checkpoint: Path, load: Load, swaps: list[Swap]) -> bool:
    """Prints the table; False where a request failed."""
    during, usual = [], []
    for began, ended in load.latencies:
        touched = any(began < swap.ended and ended > swap.began for swap in swaps)
        (during if touched else usual).append(ended - began)
    merged_bytes, copy_seconds = copy_merged(checkpoint)
    factors = swaps[0].answer.bytes / 2**20
    table = Report("swap", f"{SWAPS} swaps under {CLIENTS} clients, rank {RANK}")
    table.add("requests answered", len(load.latencies), "requests")
    table.add("requests failed", load.failed, "requests", note="wanted: 0")
    table.add("factors received", factors, "MiB", note="each swap")
    table.add("weights rewritten", merged_bytes / 2**20, "MiB", note="each swap")
    table.add("copy of these weights", copy_seconds, "s", note="in memory, best of 5")
    for name, values in (
        ("swap, first to last message", [swap.answer.seconds for swap in swaps]),
        ("no action could start", [swap.answer.pause_seconds for swap in swaps]),
        (EXCHANGE, [swap.answer.exchange_seconds for swap in swaps]),
    ):
        table.add(
            f"{name} (median)",
            statistics.median(values),
            "s",
            against="copy of these weights",
            note="wanted: at most 3" if name == EXCHANGE else "",
        )
        table.add(f"{name} (worst)", max(values), "s", against="copy of these weights")
    table.add("answer, no swap (median)", statistics.median(usual), "s")
    table.add("answer during a swap (worst)", max(during), "s", against="answer, no swap (median)")
    pause = max(during) - statistics.median(usual)
    table.add("pause seen by clients (worst)", pause, "s", note="the line above less the usual")
    return table.finish() and load.failed == 0


def copy_merged(checkpoint: Path) -> tuple[int, float]:
    """Bytes of the weights that an adapter rewrites, and the seconds that copying them takes."""
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    weights = [torch.ones(shape) for shape in layers.values()]
    targets = [torch.empty_like(weight) for weight in weights]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        for target, weight in zip(targets, weights, strict=True):
            target.copy_(weight)
        seconds.append(time.perf_counter() - began)
    return sum(weight.nbytes for weight in weights), min(seconds)


if __name__ == "__main__":
    main()
