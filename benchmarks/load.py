"""What a client waits for an action under load, by k6: percentiles for 1, 8 and 32 clients.

    python -m benchmarks.load [--quick] [--checkpoint DIR]

k6 is no client of ours: it reads protos/ and speaks gRPC from Go, a connection for each of its
clients. What it gets through is compared with as many callers of `AsyncPolicyClient`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.policy_load import KEY, Load, observations, served
from benchmarks.report import Report
from vlarl.clients.policy import AsyncPolicyClient
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.weights.hub import folder_of

SCRIPT = Path(__file__).parent / "k6" / "predict.js"
CLIENTS = (1, 8, 32)
LEAST = 0.9


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder or a name; default: an untrained one of 224 px"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
        checkpoint = arguments.checkpoint and folder_of(arguments.checkpoint)
        if checkpoint is None:
            checkpoint = Path(directory) / "tiny"
            make_tiny_checkpoint(checkpoint, image_size=224)
        met = asyncio.run(measure(checkpoint, Path(directory), 5 if arguments.quick else 30))
    sys.exit(0 if met else 1)


async def measure(checkpoint: Path, directory: Path, seconds: int) -> bool:
    """Measures and prints the table."""
    requests = directory / "observations.json"
    requests.write_text(
        json.dumps([as_json(*pair) for pair in observations(max(CLIENTS))]), encoding="utf-8"
    )
    table = Report("load", "What k6 waits for an action of the tiny policy, 224 px")
    async with served(checkpoint, directory, max(CLIENTS)) as address:
        for clients in CLIENTS:
            async with AsyncPolicyClient(address, timeout_seconds=60) as client:
                await Load(client, clients).run(seconds / 3)
                ours = Load(client, clients)
                await ours.run(seconds)
            found = await asyncio.to_thread(ask, address, requests, clients, seconds)
            baseline = f"AsyncPolicyClient, {clients} callers"
            table.add(baseline, ours.speed, "actions/s", note=f"{ours.failed} failed")
            count = int(found["grpc_req_duration"]["count"])
            table.add(
                f"k6, {clients} clients",
                found["iterations"]["rate"],
                "actions/s",
                against=baseline,
                at_least=LEAST,
                note=f"{count} requests, {int(found['wrong_answers']['count'])} failed",
            )
            for quantile in ("p(50)", "p(95)", "p(99)"):
                milliseconds = found["grpc_req_duration"][quantile]
                table.add(f"k6, {clients} clients, {quantile}", milliseconds, "ms")
    return table.finish()


def as_json(image: bytes, instruction: str) -> dict[str, Any]:
    """A request as protobuf's JSON has it."""
    encoded = base64.b64encode(image).decode()
    observation = {"image": encoded, "instruction": instruction}
    return {"observations": [observation], "temperature": 1.0, "unnormKey": KEY}


def ask(address: str, requests: Path, clients: int, seconds: int) -> dict[str, dict[str, float]]:
    """k6's metrics by name."""
    settings = {
        "ADDRESS": address,
        "OBSERVATIONS": str(requests),
        "CLIENTS": str(clients),
        "SECONDS": str(seconds),
    }
    chosen = [part for key, value in settings.items() for part in ("-e", f"{key}={value}")]
    command = [str(Path(sys.executable).parent / "k6"), "run", "--quiet", *chosen, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"k6 failed: {done.stderr[-2000:]}")
    metrics: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    found = {name: dict(metric["values"]) for name, metric in metrics.items()}
    found["grpc_req_duration"]["count"] = found["iterations"]["count"]
    return found


if __name__ == "__main__":
    main()
