"""Control steps a second: a policy that answers chunks, against one of the same size that doesn't.

    python -m benchmarks.policy_chunks [--quick] [--checkpoint DIR] [--chunked DIR]

The autoregressive policy is asked at every control step, the other one once a chunk. Both answer
through gRPC, with sampled tokens and log-probs, and in vLLM's synchronous engine without server,
processes or wire (see `benchmarks.policy`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks.policy import BATCHES, baseline, loaded
from benchmarks.policy_load import served
from benchmarks.report import Report
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint
from vlarl.models.registry import policy_spec
from vlarl.weights.hub import folder_of

UNIT = "control steps/s"
CHUNK = 8
AT_LEAST = {8: 8.0}
"""Ratios to the autoregressive policy that are wanted, by clients."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--checkpoint", type=Path, help="default: an untrained one of 224 px")
    parser.add_argument("--chunked", type=Path, help="default: the same, with chunks of 8 steps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
        plain = arguments.checkpoint and folder_of(arguments.checkpoint)
        plain = plain or untrained(Path(directory) / "tiny")
        chunked = arguments.chunked and folder_of(arguments.chunked)
        chunked = chunked or untrained(Path(directory) / "chunked", CHUNK)
        met = asyncio.run(compare(plain, chunked, Path(directory), arguments.quick))
    sys.exit(0 if met else 1)


def untrained(folder: Path, chunk: int = 1) -> Path:
    """A checkpoint of 224 px; with a chunk OpenVLA-OFT, of one camera and without the arm."""
    if chunk > 1:
        make_tiny_oft_checkpoint(folder, chunk=chunk, image_size=224)
    else:
        make_tiny_checkpoint(folder, image_size=224)
    return folder


async def compare(plain: Path, chunked: Path, directory: Path, quick: bool) -> bool:
    """Measures both and prints the table; False where a wanted ratio is missed."""
    specs = {"autoregressive": policy_spec(plain), "chunks": policy_spec(chunked)}
    cameras, steps = len(specs["chunks"].cameras), specs["chunks"].chunk
    size = specs["chunks"].image_size
    title = f"Control steps a second, {size} px, chunks of {steps} from {cameras} camera(s)"
    report = Report("policy_chunks", title)
    seconds, most = (6.0 if quick else 30.0), max(BATCHES)
    for name, checkpoint in (("autoregressive", plain), ("chunks", chunked)):
        own = directory / f"{name} served"
        own.mkdir()
        for batch in BATCHES:
            answers = baseline("vllm", checkpoint, batch, ["--quick"] if quick else [])
            report.add(f"{name}, in-process x{batch}", answers * specs[name].chunk, UNIT)
        async with served(checkpoint, own, most) as address:
            for batch in BATCHES:
                load, _ = await loaded(address, batch, seconds)
                row, speed = f"{name}, {batch} clients", load.control_speed
                within = f"{name}, in-process x{batch}"
                wanted = 0.9 if batch == most else None
                report.add(row, speed, UNIT, against=within, at_least=wanted)
                if name == "chunks":
                    other, wanted = f"autoregressive, {batch} clients", AT_LEAST.get(batch)
                    report.add(f"{row} ", speed, UNIT, against=other, at_least=wanted)
    return report.finish()


if __name__ == "__main__":
    main()
