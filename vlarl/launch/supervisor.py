"""The stack on one machine: start in order, watch, stop everything, leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vlarl.config import ConfigError, RunConfig
from vlarl.config.libero import SIMULATOR_PACKAGE, has_simulator, simulator_environment
from vlarl.invocation import invocation
from vlarl.launch.process import Service, ServiceDiedError
from vlarl.launch.torchrun import ranks_command
from vlarl.launch.valkey import valkey_command
from vlarl.ownership import admission, lock_of
from vlarl.rpc.channel import open_channel, wait_until_serving
from vlarl.terminal import complain, say, waiting

_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_STOP_SECONDS_WITHOUT_QUEUE = 5.0
_INTERRUPTED = 130
_LONGEST_FOLDER = 107 - len("/vlarl-12345678/") - 36
"""Bytes of the name of a folder in which the policy's engine may have its sockets, each named by a
UUID; the system takes 107.
"""
_LOWEST_PORT = 10_000

T = TypeVar("T")


def simulator_python() -> Path:
    """The interpreter that has LIBERO: this one, or `.venv-sim` beside this environment.

    Raises:
        ConfigError: neither has it.
    """
    if has_simulator():
        return Path(sys.executable)
    here = Path(sys.prefix)
    beside = here.parent / ".venv-sim"
    # A command that starts itself over in that environment would do so for ever.
    if beside.resolve() == here.resolve():
        raise ConfigError(f"{beside} has no {SIMULATOR_PACKAGE}; run `make setup`")
    python = beside / "bin" / "python"
    if not python.exists():
        raise ConfigError(f"no simulator environment at {python}; run `make setup`")
    return python


def free_address() -> str:
    """A loopback HOST:PORT that nobody listens on now. It is none of the ports that the kernel
    gives to outgoing connections, one of which might take it before the server is there.
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _LOWEST_PORT + secrets.randbelow(_ports())))
            except OSError:
                continue
            return f"127.0.0.1:{probe.getsockname()[1]}"


def _ports() -> int:
    """How many ports lie between the lowest that is taken here and those of the kernel."""
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(setting.read_text(encoding="utf-8").split()[0]) if setting.exists() else 32768
    return max(1000, first - _LOWEST_PORT)


class Stack:
    """The queue and the services of one run; then its trainer, or other work."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        names: Sequence[str] = ("policy", "env", "reward"),
        *,
        lasting_queue: bool = True,
    ) -> None:
        """Starts nothing yet.

        Args:
            config: the run.
            run_dir: holds its config.toml, and receives logs/ and addresses.txt.
            names: the services.
            lasting_queue: whether the queue's files stay in `run_dir`, for a resumed run.
        """
        self._config = config
        self._run_dir = run_dir
        self._names = names
        # All temporary files of all services, and the queue's socket: a Unix socket's path must be
        # short, so it can't lie in the run's folder.
        self._folder = Path(tempfile.gettempdir()) / f"vlarl-{secrets.token_hex(3)}"
        self._queue_files = run_dir / "queue" if lasting_queue else self._folder / "files"
        self._services: list[Service] = []
        self._addresses = {name: free_address() for name in (*names, "trainer")}
        self._metrics = {name: free_address() for name in self._addresses}
        self._security = config.security.channel()

    @property
    def overrides(self) -> list[str]:
        """What this start decides, for `load_config`: where the queue and the services are."""
        chosen = {
            "queue.url": f"unix://{self._folder / 'queue'}",
            "policy.addresses": self._addresses["policy"],
            "trainer.address": self._addresses["trainer"],
        }
        return [f"{key}={value}" for key, value in chosen.items()]

    async def start(self) -> None:
        """Starts the queue and the services, and waits until all serve."""
        if "policy" in self._names and len(os.fsencode(self._folder)) > _LONGEST_FOLDER:
            folder = tempfile.gettempdir()
            raise ConfigError(
                f"{folder}: too long for Unix sockets; set TMPDIR to a shorter folder"
            )
        self._folder.mkdir(mode=0o700)
        valkey = self._folder / "queue"
        await self._start("queue", valkey_command(self._queue_files, valkey))
        await self.watching(self._until_exists(valkey))
        self._write_addresses()
        simulator = str(simulator_python())
        for name in self._names:
            if name == "env":
                environment = simulator_environment(os.environ)
                await self._start(name, self._serve(name, simulator), environment)
            else:
                await self._start(name, self._serve(name, sys.executable))
        with waiting(f"starting the services: {', '.join(self._names)}"):
            for name in self._names:
                await self.watching(self._until_serving(name))

    async def train(self) -> int:
        """Runs the trainer; returns its exit code.

        Raises:
            ServiceDiedError: another service ended before.
        """
        command = ranks_command(self._config.trainer.ranks)
        command += ["-m", "vlarl", "train", "--resume", str(self._run_dir)]
        # Not --set, which would save with the run what holds for this start alone.
        command += ["--metrics-listen", self._metrics["trainer"], *self._settings("--here")]
        environment = {**os.environ, **admission(self._run_dir)}
        trainer = await self._start(
            "trainer",
            command,
            environment,
            foreground=True,
            # Killed, this process leaves it in the midst of an update, which takes a while to end.
            descriptors=lock_of(self._run_dir),
        )
        return await self.watching(trainer.wait(), but=trainer)

    async def stop(self) -> None:
        """Ends every process: the trainer, then those that hand back to the queue what they have in
        work, then the policy that they ask meanwhile, and the queue last. If that has died, there
        is nothing to hand back.
        """
        queue_lives = any(service.alive for service in self._services if service.name == "queue")
        seconds = _STOP_SECONDS if queue_lives else _STOP_SECONDS_WITHOUT_QUEUE
        turns = {"env": 1, "reward": 1, "policy": 2, "queue": 3}
        for turn in range(4):
            together = [one for one in self._services if turns.get(one.name, 0) == turn]
            await asyncio.gather(*(service.stop(seconds) for service in together))
        # What killed services have left goes, too.
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _start(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        *,
        foreground: bool = False,
        descriptors: Sequence[int] = (),
    ) -> Service:
        log = self._run_dir / "logs" / f"{name}.log"
        own = {**(environment or os.environ), "TMPDIR": str(self._folder)}
        service = Service(name, command, log, own, foreground=foreground, descriptors=descriptors)
        self._services.append(service)  # first: it is stopped even if its start is cut short
        await service.start()
        return service

    def _serve(self, name: str, python: str) -> list[str]:
        config = str(self._run_dir / "config.toml")
        command = [python, "-m", "vlarl", "serve", name, "--config", config]
        command += ["--listen", self._addresses[name], "--metrics-listen", self._metrics[name]]
        return command + self._settings("--set")

    def _settings(self, option: str) -> list[str]:
        return [part for override in self.overrides for part in (option, override)]

    def _write_addresses(self) -> None:
        """Writes down where everything listens, for people."""
        lines = [f"queue unix://{self._folder / 'queue'}"]
        for name, address in self._addresses.items():
            lines.append(f"{name} {address} metrics http://{self._metrics[name]}/metrics")
        (self._run_dir / "addresses.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    async def _until_exists(self, path: Path) -> None:
        while not path.exists():
            await asyncio.sleep(0.02)

    async def _until_serving(self, name: str) -> None:
        async with open_channel(self._addresses[name], self._security) as channel:
            await wait_until_serving(channel, "", _START_SECONDS)
        say(("✓", "green"), f" {name} serves on {self._addresses[name]}", stderr=True)

    async def watching(self, work: Coroutine[Any, Any, T], but: Service | None = None) -> T:
        """Awaits `work` while every service (`but` one) lives.

        Raises:
            ServiceDiedError: a service ended before.
        """
        task = asyncio.create_task(work)
        watches = {
            asyncio.create_task(service.wait()): service
            for service in self._services
            if service is not but
        }
        try:
            await asyncio.wait({task, *watches}, return_when=asyncio.FIRST_COMPLETED)
            dead = [service for watch, service in watches.items() if watch.done()]
            if dead and not task.done():
                raise await dead[0].obituary()
            return await task
        finally:
            for pending in (task, *watches):
                pending.cancel()
            await asyncio.gather(task, *watches, return_exceptions=True)


async def run_stack(config: RunConfig, run_dir: Path) -> int:
    """Runs the stack of the run whose `config.toml` lies in `run_dir`, until its trainer ends.

    Returns:
        The exit code: the trainer's; 1 when a service died; 130 after Ctrl-C or SIGTERM.
    """
    stack = Stack(config, run_dir)
    again = f"{invocation()} up --resume {shlex.quote(str(run_dir))}"
    return await supervise(stack, _train(stack), again)


async def _train(stack: Stack) -> int:
    await stack.start()
    return await stack.train()


class Stoppable(Protocol):
    """What has processes of its own."""

    async def stop(self) -> None:
        """Ends all of them."""


async def supervise(stack: Stoppable, work: Coroutine[Any, Any, int], resume: str) -> int:
    """Runs `work`, which starts processes and uses them, and stops everything however that ends.

    Args:
        stack: what is stopped.
        work: its result is the exit code.
        resume: command that goes on where an interrupted one stopped.

    Returns:
        The exit code: 1 when a service died; 130 after Ctrl-C or SIGTERM.
    """
    running = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    hint = f"go on with: {resume}"
    try:
        return await running
    except ServiceDiedError as death:
        complain(death)
        say(hint, stderr=True)
        return 1
    except asyncio.CancelledError:
        say(("interrupted", "yellow"), f"; {hint}", stderr=True)
        return _INTERRUPTED
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            # A second Ctrl-C must not cut the stopping short and leave processes behind.
            loop.add_signal_handler(number, lambda: None)
        await stack.stop()
