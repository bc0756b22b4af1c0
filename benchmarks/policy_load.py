"""What the policy's benchmarks share: a served checkpoint, observations, adapters, clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vlarl.clients.policy import AsyncPolicyClient, Observation
from vlarl.images import encode_jpeg
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.policy.v1.policy_pb2 import GetPolicyResponse
from vlarl.rpc.channel import open_channel, wait_until_serving
from vlarl.weights.adapter import Adapter
from vlarl.weights.checkpoint import base_digest

FRAME_SIZE = 256
KEY = "libero_goal"
INSTRUCTIONS = ("turn on the stove", "put the bowl on the plate", "open the middle drawer")


def observations(count: int) -> list[tuple[bytes, str]]:
    """JPEG frames as the simulator sends them, each different, with an instruction."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    scale = FRAME_SIZE // 16
    return [
        (encode_jpeg(one.repeat(scale, axis=0).repeat(scale, axis=1)), INSTRUCTIONS[index % 3])
        for index, one in enumerate(tiles)
    ]


def shown(pairs: list[tuple[bytes, str]], policy: GetPolicyResponse) -> list[Observation]:
    """Observations as the policy wants them: all of its cameras see the same, its arm rests."""
    return [
        Observation(
            image,
            instruction,
            dict.fromkeys(policy.cameras[1:], image),
            np.zeros(policy.proprio, np.float32) if policy.proprio else None,
        )
        for image, instruction in pairs
    ]


def random_adapter(
    checkpoint: Path,
    version: int,
    rank: int,
    *,
    size: float = 0.01,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
) -> Adapter:
    """Factors for every adaptable layer.

    size: deviation of B's numbers.
    base: digest of the checkpoint, where it is known already.
    """
    generator = torch.Generator().manual_seed(version)
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    factors = {
        layer: (
            (torch.randn(min(rank, out, into), into, generator=generator) / into**0.5).to(dtype),
            (torch.randn(out, min(rank, out, into), generator=generator) * size).to(dtype),
        )
        for layer, (out, into) in layers.items()
    }
    return Adapter("benchmark", version, base or base_digest(checkpoint), 0.5, factors)


@contextlib.asynccontextmanager
async def served(
    checkpoint: Path, directory: Path, batch: int, threads: int | None = None
) -> AsyncIterator[str]:
    """Address of a serving policy server on the checkpoint, in a process of its own.

    Args:
        checkpoint: what it serves.
        directory: for its files; of no other server's.
        batch: its `policy.max_batch`.
        threads: of the engine; none: all cores.
    """
    address_file, log_file = directory / "address", directory / "policy.log"
    command = [sys.executable, "-m", "vlarl", "serve", "policy", "--checkpoint", str(checkpoint)]
    command += ["--listen", "127.0.0.1:0", "--address-file", str(address_file)]
    command += ["-s", f"policy.max_batch={batch}"]
    command += ["-s", f"policy.cpu_threads={threads}"] if threads else []
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not address_file.exists():
            if process.poll() is not None:
                raise RuntimeError(
                    f"the policy server ended: {log_file.read_text(encoding='utf-8')[-2000:]}"
                )
            await asyncio.sleep(0.1)
        address = address_file.read_text(encoding="utf-8").strip()
        async with open_channel(address) as channel:
            await wait_until_serving(channel, "vlarl.policy.v1.PolicyService", 300)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Load:
    """Clients that ask for one action after another until they are told to stop."""

    client: AsyncPolicyClient
    clients: int
    temperature: float = 1.0
    key: str = KEY
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(begin, end) of every answered request, by `time.perf_counter`."""
    versions: list[int] = field(default_factory=list)
    """Policy version of every answer."""
    horizon: int = 1
    """Control steps of an answer."""
    failed: int = 0
    first_failure: str = ""

    @property
    def speed(self) -> float:
        """Answers a second."""
        began, ended = zip(*self.latencies, strict=True)
        return len(self.latencies) / (max(ended) - min(began))

    @property
    def control_speed(self) -> float:
        """Control steps that are answered a second."""
        return self.speed * self.horizon

    async def run(self, seconds: float | None, stop: asyncio.Event | None = None) -> None:
        """Asks for so long, or until the event is set."""
        seen = shown(observations(self.clients), await self.client.get_policy())
        deadline = time.perf_counter() + seconds if seconds else float("inf")

        async def one(index: int) -> None:
            while time.perf_counter() < deadline and not (stop and stop.is_set()):
                began = time.perf_counter()
                try:
                    (action,) = await self.client.predict_batch(
                        [seen[index]], temperature=self.temperature, unnorm_key=self.key
                    )
                except Exception as error:  # noqa: BLE001 - whatever it was, a request failed
                    self.failed += 1
                    self.first_failure = self.first_failure or repr(error)[:300]
                    await asyncio.sleep(0.05)
                else:
                    self.latencies.append((began, time.perf_counter()))
                    self.versions.append(action.policy_version)
                    self.horizon = action.horizon

        await asyncio.gather(*(one(index) for index in range(self.clients)))
