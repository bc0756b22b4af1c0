"""Stage `seven`: speed, swaps, memory and parity at OpenVLA-7B's size."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.plain import Pairs, PlainPolicy, dataset_key
from benchmarks.gpu_check.results import say
from benchmarks.gpu_check.server import Server
from benchmarks.gpu_check.swapping import swap_under_load
from benchmarks.policy_load import Load, observations, random_adapter
from vlarl.clients.policy import Action, AsyncPolicyClient
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.weights.adapter import Adapter

_BOUND = 0.05
_PAIRS = 16
_RANK = 32
_SWAPS = 2
_SECONDS_FOR_SWAP = 45.0
_SECONDS_FOR_PARITY = 30.0


def make_checkpoint(check: Check) -> Path:
    """The large checkpoint, unless it lies in the scratch folder already."""
    directory = check.scratch / "seven"
    if (directory / "config.json").exists() and list(directory.glob("model*.safetensors")):
        return directory
    if check.rehearse:
        make_tiny_checkpoint(directory, image_size=56, text_dim=256, text_layers=2)
        return directory
    # A process of its own gives the GPU's memory back.
    program = (
        "import sys; from pathlib import Path; from benchmarks.seven_b import make_checkpoint; "
        "make_checkpoint(Path(sys.argv[1]), full_size=True)"
    )
    command = [sys.executable, "-c", program, str(directory)]
    subprocess.run(command, check=True, timeout=max(5, check.left))
    return directory


def start_large(check: Check, directory: Path, threads: int | None) -> Server:
    """Its server; `threads` is policy.cpu_threads."""
    settings = ["policy.max_batch=64"]
    if not check.cuda:
        settings += ["policy.cpu_threads=1", "policy.kv_cache_mib=64"]
    elif threads:
        settings.append(f"policy.cpu_threads={threads}")
    return Server(check, "7B", directory, "auto", settings)


async def measure_large(
    check: Check, server: Server, clients: Sequence[int], seconds: float
) -> None:
    """All of the stage.

    Args:
        check: the run.
        server: of the large checkpoint.
        clients: numbers of clients whose speed is measured.
        seconds: for each of them.
    """
    address = await server.serving(check.left)
    check.add_memory(server.name, "serving")
    key = dataset_key(server.checkpoint)
    pairs = observations(_PAIRS)
    async with AsyncPolicyClient(address, timeout_seconds=180) as client:
        await _add_speed(check, server, client, clients, seconds)
        drawn = await client.predict_batch(pairs, temperature=1.0, unnorm_key=key)
        greedy = await client.predict_batch(pairs, temperature=0.0, unnorm_key=key)
        last = await _add_swaps(check, server, client, address)
        check.add_memory(server.name, "after swaps")
        after = await client.predict_batch(pairs, temperature=1.0, unnorm_key=key)
    if check.left < _SECONDS_FOR_PARITY and not check.rehearse:
        say("no time for plain torch beside it")
        return
    acted = [("T=1", drawn, 1.0), ("greedy", greedy, 0.0)]
    await asyncio.to_thread(_add_parity, check, server, pairs, acted, after, last)


async def _add_speed(
    check: Check, server: Server, client: AsyncPolicyClient, clients: Sequence[int], seconds: float
) -> None:
    key = dataset_key(server.checkpoint)
    # What the first request of a batch size compiles is not a speed.
    for count in sorted({1, *clients}):
        await Load(client, count, key=key).run(min(2.0, seconds))
    for count in clients:
        load = Load(client, count, key=key)
        await load.run(seconds)
        took = sorted(end - began for began, end in load.latencies)
        late = took[int(len(took) * 0.95)]
        note = f"median {statistics.median(took) * 1e3:.0f} ms, 95 % {late * 1e3:.0f} ms"
        ok = load.failed == 0
        check.results.add(f"{server.name}: {count} clients", load.speed, "actions/s", note, ok)


async def _add_swaps(
    check: Check, server: Server, client: AsyncPolicyClient, address: str
) -> Adapter | None:
    """Swaps under load while there is time; the last one's adapter."""
    described = await client.get_policy()
    key, last, took = dataset_key(server.checkpoint), None, _SECONDS_FOR_PARITY
    for version in range(1, _SWAPS + 1):
        if check.left < _SECONDS_FOR_SWAP + took and not check.rehearse:
            say("no time for another swap")
            break
        last = await asyncio.to_thread(
            random_adapter,
            server.checkpoint,
            version,
            _RANK,
            base=described.base_digest,
        )
        swap = await swap_under_load(client, address, last, key, max(10, check.left))
        swap.add_to(check, f"{server.name}: swap {version}")
        took = swap.answer.seconds
    return last


def _add_parity(
    check: Check,
    server: Server,
    pairs: Pairs,
    acted: Sequence[tuple[str, Sequence[Action], float]],
    after: Sequence[Action],
    adapter: Adapter | None,
) -> None:
    """Against plain torch in the same data type on the same device."""
    dtype = torch.float16 if check.cuda else torch.float32
    plain = PlainPolicy(server.checkpoint, dtype, torch.device("cuda" if check.cuda else "cpu"))
    add, name = check.results.add, server.name
    gap = "largest difference of a log-prob from plain torch"
    for what, actions, temperature in acted:
        found = plain.compare(pairs, actions, temperature)
        note = f"mean {found.mean:.2g}"
        add(f"{name}: {what}, {gap}", found.worst, "nats", note, found.worst < _BOUND)
        if not temperature:
            note = f"others at most {found.shortest:.2g} less probable"
            add(f"{name}: greedy tokens that are plain torch's", found.most_probable, "", note)
    if adapter:
        plain.merge(adapter)
        found = plain.compare(pairs, after, 1.0)
        note = f"mean {found.mean:.2g}"
        add(f"{name}: after the last swap, {gap}", found.worst, "nats", note, found.worst < _BOUND)
