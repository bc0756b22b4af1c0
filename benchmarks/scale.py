"""An iteration of hundreds of episodes, without simulators, model or GPU: what it costs to move it.

    python -m benchmarks.scale [--quick] [--sizes 16 64 256] [--ranks 1 2 8] [--stores redis file]

Made-up workers push real trajectories (220 steps, frames of 23 kB) all at once into the embedded
Valkey. Then a reward server with the outcome reward scores them, the trainer's collector receives
them, and all ranks build their batch and read every frame. One part begins when the one before has
ended, so that each has time and memory of its own.

Memory is told in copies: a process's own bytes over those that it had before, divided by the bytes
of all frames. Ranks may share bytes in a file that lies in memory; those are told for all of them
once. `wire` is what went into Valkey and came out of it, and to and from files where blobs lie in
files, for each byte of a frame.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks import scale_parts
from benchmarks.report import Report
from benchmarks.scale_memory import MemoryWatch, file_bytes
from benchmarks.scale_parts import FRAME_BYTES, STEPS, TIMEOUT_SECONDS
from vlarl import parent_death
from vlarl.config import QueueConfig
from vlarl.launch.supervisor import free_address
from vlarl.launch.valkey import valkey_command

MB = 1e6
WANTED_COPIES = 1.5
"""Most that rank 0 may hold of an iteration's frames."""
JUDGED_SIZE = 64
"""Episodes from which on that is judged."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.scale_parts"])


@dataclass
class Measured:
    """One iteration."""

    frame_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    valkey_bytes: int = 0
    append_only_bytes: int = 0
    wire_bytes: int = 0
    rank_0: int = 0
    follower: int = 0
    """Most bytes of a rank that isn't rank 0."""
    shared: int = 0
    node: int = 0
    """Most bytes of all ranks together."""

    def copies(self, size: int) -> float:
        """How often these bytes hold the iteration's frames."""
        return size / self.frame_bytes


class Part:
    """A process that does its part when told to."""

    def __init__(self, main: Any, *arguments: object) -> None:  # noqa: ANN401 - any function
        self._pipe, theirs = _CONTEXT.Pipe()
        arguments = tuple(theirs if one is Connection else one for one in arguments)
        self.process = _CONTEXT.Process(target=main, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def said(self) -> Any:  # noqa: ANN401 - what parts say
        """What it says next."""
        if not self._pipe.poll(TIMEOUT_SECONDS):
            raise TimeoutError("a part of the benchmark says nothing")
        return self._pipe.recv()

    def go(self) -> None:
        """Lets it go on."""
        self._pipe.send("go")

    def next(self) -> Any:  # noqa: ANN401
        """Lets it go on, and waits for what it says then."""
        self.go()
        return self.said()

    def end(self) -> None:
        """Lets it go on to its end."""
        self.go()
        self.process.join(TIMEOUT_SECONDS)


@contextmanager
def valkey(directory: Path) -> Iterator[tuple[Redis, QueueConfig]]:
    """The server that `vlarl up` starts."""
    socket = directory / "s"
    with (directory / "log").open("wb") as log:
        # However this program ends, the server ends with it.
        tether = [sys.executable, parent_death.__file__, str(os.getpid())]
        command = [*tether, *valkey_command(directory / "files", socket)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not socket.exists():
            time.sleep(0.01)
        with Redis(unix_socket_path=str(socket)) as redis:
            yield redis, QueueConfig(url=f"unix://{socket}")
    finally:
        process.kill()
        process.wait()


def trainer(config: QueueConfig, episodes: int, ranks: int) -> list[Part]:
    """Its ranks, which know of one another what torchrun says."""
    host, port = free_address().split(":")
    found = []
    for rank in range(ranks):
        told: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        told |= {"LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": host, "MASTER_PORT": port}
        environment = {key: str(value) for key, value in told.items()} if ranks > 1 else {}
        found.append(Part(scale_parts.train, config, episodes, Connection, environment))
    return found


def measure(episodes: int, ranks: int, store: str) -> Measured:
    """One iteration of so many episodes."""
    result = Measured(episodes * (STEPS + 1) * FRAME_BYTES)
    with tempfile.TemporaryDirectory(prefix="vlarl-") as folder:
        directory = Path(folder)
        with valkey(directory) as (redis, config):
            if store == "file":
                blobs = f"file://{directory}/blobs"
                config = config.model_copy(update={"blobs": blobs})
            _measure(result, redis, config, episodes, ranks)
            if store == "file" and any((directory / "blobs").iterdir()):
                raise RuntimeError("blobs were left behind")
        files = (directory / "files").rglob("*")
        result.append_only_bytes = sum(one.stat().st_size for one in files if one.is_file())
    return result


def _measure(
    result: Measured, redis: Redis, config: QueueConfig, episodes: int, ranks: int
) -> None:
    leader, *followers = trainer(config, episodes, ranks)
    for one in (leader, *followers):
        one.said()
        one.go()
    leader.said()
    worker = Part(scale_parts.work, config, episodes, Connection)
    scorer = Part(scale_parts.score, config, Connection)
    for one in (worker, scorer):
        one.said()
    before, in_files = _traffic(redis), 0
    for name, part in (("push", worker), ("score", scorer)):
        started = sum(file_bytes(part.pid))
        result.seconds[name] = part.next()
        in_files += sum(file_bytes(part.pid)) - started
        part.end()
    read, _ = file_bytes(leader.pid)
    named = {f"rank {rank}": one.pid for rank, one in enumerate((leader, *followers))}
    watch = MemoryWatch(named)
    for name in ("collect", "check", "learn"):
        result.seconds[name] = leader.next()
        if name == "collect":
            # Not what it writes: its own memory is a file, too.
            in_files += file_bytes(leader.pid)[0] - read
    result.seconds["settle"] = leader.next()
    metrics = leader.next()
    watch.stop()
    seen = {one.said() for one in followers} | {metrics["checksum"]}
    if len(seen) != 1:
        raise RuntimeError("ranks have seen different frames")
    for one in (leader, *followers):
        one.end()
    result.valkey_bytes = int(redis.info("memory")["used_memory_peak"])
    result.wire_bytes = _traffic(redis) - before
    if config.blobs != "redis":
        result.wire_bytes += in_files
    result.rank_0, result.shared, result.node = watch.grown("rank 0"), watch.shared, watch.together
    result.follower = max([watch.grown(name) for name in named if name != "rank 0"], default=0)


def _traffic(redis: Redis) -> int:
    stats = redis.info("stats")
    return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--sizes", type=int, nargs="+", help="episodes of an iteration")
    parser.add_argument("--ranks", type=int, nargs="+", help="ranks of the trainer")
    parser.add_argument("--stores", nargs="+", choices=("redis", "file"), help="where blobs lie")
    chosen = parser.parse_args()
    sizes = chosen.sizes or ([2, 8] if chosen.quick else [16, 64, 256])
    ranks = chosen.ranks or ([1, 2] if chosen.quick else [1, 2, 8])
    report = Report("scale", f"An iteration's episodes of {STEPS} frames of {FRAME_BYTES:,} bytes")
    missed = False
    for store in chosen.stores or ("redis", "file"):
        for number in ranks if store == "redis" else ranks[:1]:
            for size in sizes:
                found = measure(size, number, store)
                show(report, found, size, number, store, sizes)
                # A small size's copies are mostly what a process holds whatever the size.
                if size >= JUDGED_SIZE:
                    missed |= found.copies(found.rank_0 + found.shared) > WANTED_COPIES
    report.finish()
    sys.exit(missed)


def show(
    report: Report, found: Measured, size: int, ranks: int, store: str, sizes: Sequence[int]
) -> None:
    """Adds one iteration's rows."""
    smallest = sizes[0]
    rank = "1 rank" if ranks == 1 else f"{ranks} ranks"
    where = f"{rank}, {store}" if store != "redis" else rank

    def add(name: str, value: float, unit: str, note: str = "") -> None:
        against = f"{smallest} episodes, {where}: {name}" if size != smallest else None
        if against and not report.find(against).value:
            against = None
        report.add(f"{size} episodes, {where}: {name}", value, unit, against=against, note=note)

    if ranks == 1:
        for part in ("push", "score"):
            add(part, 1e3 * found.seconds[part] / size, "ms an episode")
        add("wire", found.wire_bytes / found.frame_bytes, "bytes a frame byte")
        add(
            "Valkey, at most",
            found.valkey_bytes / MB,
            "MB",
            f"{found.frame_bytes / MB:,.0f} MB of frames",
        )
        add("append-only file", found.append_only_bytes / MB, "MB")
    for part in ("collect", "check", "learn"):
        add(part, 1e3 * found.seconds[part] / size, "ms an episode")
    if found.shared:
        add("shared by ranks", found.copies(found.shared), "copies")
    add("rank 0 alone, at most", found.copies(found.rank_0), "copies")
    with_shared = found.copies(found.rank_0 + found.shared)
    add("rank 0, shared ones included", with_shared, "copies", f"wanted: {WANTED_COPIES} at most")
    if ranks > 1:
        add("a follower alone, at most", found.copies(found.follower), "copies")
    add("all ranks, at most", found.copies(found.node), "copies", f"{found.node / MB:,.0f} MB")


if __name__ == "__main__":
    main()
