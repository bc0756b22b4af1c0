"""Entry point of `python -m benchmarks.gpu_check`: which stages run, and what overlaps."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import torch

import benchmarks.gpu_check
from benchmarks.gpu_check import up
from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.probe import add_probe
from benchmarks.gpu_check.results import Results, now, say
from benchmarks.gpu_check.server import Server
from benchmarks.gpu_check.seven import make_checkpoint, measure_large, start_large
from benchmarks.gpu_check.tiny import KINDS, SmallServer

STAGES = ("probe", "tiny", "seven", "up")
_SCRATCH_BYTES = 24 * 2**30


def main() -> None:
    """Entry point; exits with 1 where something isn't what was wanted."""
    arguments = parse()
    cuda = torch.cuda.is_available()
    if not cuda and not arguments.rehearse:
        sys.exit("this check needs a CUDA device; --rehearse does without")
    # Servers and clients are on this machine: nobody is to ask which address leads out of it.
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out)
    with tempfile.TemporaryDirectory(prefix="vlarl-check-") as work:
        scratch = arguments.scratch or roomy_folder(Path(work)) / "vlarl-check-scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        seconds = arguments.seconds
        check = Check(results, Path(work), scratch, seconds, cuda, arguments.rehearse)
        say(f"torch {torch.__version__}, CUDA {cuda}, scratch {scratch}")
        try:
            asyncio.run(asyncio.wait_for(Run(check, arguments).all(), seconds))
        except Exception:  # noqa: BLE001 - what is there by now is to be kept
            results.fail("the run")
        finally:
            with tarfile.open(arguments.out / "logs.tar.gz", "w:gz") as archive:
                for log in sorted(Path(work).glob("*.log")):
                    archive.add(log, log.name)
            if not arguments.keep:
                shutil.rmtree(scratch, ignore_errors=True)
    results.add("all", now(), "s")
    print(results.report)
    sys.exit(1 if results.unwanted else 0)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=benchmarks.gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/gpu_check"), help="where the results go")
    add("--seconds", type=float, default=540, help="for everything")
    add("--stages", type=names(STAGES), default=["probe", "tiny", "seven"], metavar="A,B")
    add("--servers", type=names(KINDS), default=KINDS, metavar="A,B", help=f"of {','.join(KINDS)}")
    add("--start", type=float, default=240, help="seconds for a small server's start")
    add("--clients", type=numbers, default=[1, 8, 32, 64], metavar="N,N", help="of the large one")
    add("--load", type=float, default=8, help="seconds for each number of clients")
    add("--threads", type=int, help="policy.cpu_threads of the large server")
    add("--scratch", type=Path, help="for 15 GiB; default: memory, if it has 24 to spare")
    add("--keep", action="store_true", help="leave what lies in the scratch folder there")
    add("--config", default="configs/reach.toml", help="of `up`")
    add("--up", type=float, default=200, help="seconds for `up`")
    add("--set", nargs="*", default=up.SETTINGS, metavar="KEY=VALUE", help="for `up`")
    add("--rehearse", action="store_true", help="without a GPU")
    return parser.parse_args()


def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A parser of some of these names with commas."""

    def parse_names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r} among {', '.join(known)}")
        return chosen

    return parse_names


def numbers(text: str) -> list[int]:
    """Numbers with commas."""
    return [int(number) for number in text.split(",")]


def roomy_folder(work: Path) -> Path:
    """A folder in memory if it has room for the large checkpoint, else `work`."""
    memory = Path("/dev/shm")  # noqa: S108 - whose folder is made there is ours
    if memory.is_dir() and shutil.disk_usage(memory).free > _SCRATCH_BYTES:
        return memory
    return work


class Run:
    """The stages of one run, what can overlap overlapping."""

    def __init__(self, check: Check, arguments: argparse.Namespace) -> None:
        self._check, self._arguments = check, arguments
        self._small: list[SmallServer] = []

    async def all(self) -> None:
        """Runs the chosen stages."""
        stages = self._arguments.stages
        large = None
        try:
            async with asyncio.TaskGroup() as group:
                if "probe" in stages:
                    work = asyncio.to_thread(add_probe, self._check)
                    group.create_task(self._guarded("probe", work))
                if "tiny" in stages:
                    self._start_small(group)
                if "seven" in stages:
                    large = await self._start_large()
            # Speed is measured with nothing else on the GPU.
            self._stop_small()
            if large:
                clients, seconds = self._arguments.clients, self._arguments.load
                work = measure_large(self._check, large, clients, seconds)
                await self._guarded("seven", work)
                large.stop()
            if "up" in stages:
                await self._up()
        finally:
            self._stop_small()
            if large:
                large.kill()

    async def _guarded(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - the next stage is worth having all the same
            self._check.results.fail(what)

    def _start_small(self, group: asyncio.TaskGroup) -> None:
        for kind in self._arguments.servers:
            small = SmallServer(self._check, kind)
            self._small.append(small)
            group.create_task(self._guarded(kind, small.measure(self._arguments.start)))

    def _stop_small(self) -> None:
        for small in self._small:
            small.server.stop()
        self._small.clear()

    async def _start_large(self) -> Server | None:
        try:
            directory = await asyncio.to_thread(make_checkpoint, self._check)
        except Exception:  # noqa: BLE001 - the small servers are worth having all the same
            self._check.results.fail("the large checkpoint")
            return None
        size = sum(path.stat().st_size for path in directory.iterdir()) / 2**30
        self._check.results.add("7B: checkpoint written after", now(), "s", f"{size:.2f} GiB")
        return start_large(self._check, directory, self._arguments.threads)

    async def _up(self) -> None:
        if self._check.left < up.LEAST_SECONDS:
            say(f"no time for `up`: {self._check.left:.0f} s are left")
            return
        chosen = self._arguments.config, self._arguments.set, self._arguments.up
        await self._guarded("up", asyncio.to_thread(up.run_up, self._check, *chosen))


if __name__ == "__main__":
    main()
