"""One simulator process as the server sees it: spawned, asked under a deadline, killed when in
doubt.

Graphics drivers hang without a word and die without a trace, so nothing here trusts the other
side: every answer has a deadline, the connection may end at any byte, and the process is its own
program (`vlarl_env.child`), not a fork of this one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from types import MappingProxyType

from google.protobuf.message import DecodeError

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl_env.errors import (
    BrokenTaskError,
    CommandRefusedError,
    SimulatorDiedError,
    SimulatorFailedError,
    SimulatorHungError,
)
from vlarl_env.metrics import EnvMetrics
from vlarl_env.simulators.libero.headless import cache_folder, headless_environment
from vlarl_env.wire import HEADER, Frame, Kind, decode_header

logger = logging.getLogger(__name__)

_EXIT_SECONDS = 10.0


class SimulatorProcess:
    """A simulator process. Construct with `spawn`.

    Attributes:
        episodes: Episodes begun.
        alive: False once it ended, hung or failed.
    """

    def __init__(
        self,
        config: EnvConfig,
        metrics: EnvMetrics,
        turns: asyncio.Semaphore,
        child: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._turns = turns
        self._child = child
        self._reader = reader
        self._writer = writer
        self._loaded: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._exchanging: asyncio.Task[Frame] | None = None
        self.episodes = 0
        self.alive = True
        self._control_steps = 0
        self._compiled = False

    @classmethod
    async def spawn(
        cls,
        config: EnvConfig,
        egl_device: int | None,
        metrics: EnvMetrics,
        turns: asyncio.Semaphore,
    ) -> SimulatorProcess:
        """Starts a process and waits until its libraries are loaded.

        Args:
            config: Its settings.
            egl_device: GPU to draw on; none: software rendering.
            metrics: Where steps and seconds are counted.
            turns: Held while a step is computed.

        Raises:
            SimulatorError: it ended or hung before.
        """
        # MuJoCo writes MUJOCO_LOG.TXT into the working directory.
        folder = cache_folder() / "simulators"
        folder.mkdir(exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "vlarl_env.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=headless_environment(MappingProxyType(os.environ), egl_device),
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        simulator = cls(config, metrics, turns, child, reader, writer)
        folders = {name: path.resolve() for name, path in config.bddl_directories.items()}
        settings = config.model_copy(update={"bddl_directories": folders})
        try:
            ready = await simulator._exchange(
                Frame(Kind.SETTINGS, settings.model_dump_json().encode()),
                config.construct_timeout_seconds,
            )
        except BaseException:
            await simulator.close()
            raise
        if ready.kind is not Kind.READY:
            await simulator.close()
            raise SimulatorFailedError(f"a new simulator began with {ready.kind.name}")
        return simulator

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def has_loaded(self, suite: str, index: int) -> bool:
        """Whether an episode of this task needs no construction."""
        return (suite, index) in self._loaded

    async def reset(self, command: env_pb2.ResetEpisode) -> env_pb2.InteractResponse:
        """Starts an episode.

        Raises:
            CommandRefusedError: no such task, state or camera.
            BrokenTaskError: the task's scene can't be built.
            SimulatorError: the simulator is lost.
        """
        key = (command.task.suite, command.task.index)
        seconds = self._config.step_timeout_seconds
        if key not in self._loaded:
            seconds = self._config.construct_timeout_seconds
        self.episodes += 1
        self._control_steps = 0
        answer = await self._ask(env_pb2.InteractRequest(reset=command), seconds)
        self._compiled |= self._config.settle_steps > 0
        # As the process itself does.
        self._loaded[key] = None
        self._loaded.move_to_end(key)
        while len(self._loaded) > self._config.cached_tasks:
            self._loaded.popitem(last=False)
        return answer

    async def step(self, command: env_pb2.StepEpisode) -> env_pb2.InteractResponse:
        """Applies one action or a chunk of them, when it is this simulator's turn.

        Raises:
            CommandRefusedError: no episode runs, or an action isn't seven finite numbers.
            SimulatorError: the simulator is lost.
        """
        request = env_pb2.InteractRequest(step=command)
        # A process's first control step compiles robosuite's functions, which takes a minute on a
        # busy machine where nobody has before: that is part of the construction.
        seconds = self._config.step_timeout_seconds
        if not self._compiled:
            seconds = max(seconds, self._config.construct_timeout_seconds)
        async with self._turns:
            answer = await self._ask(request, seconds)
        self._compiled = True
        return answer

    async def _ask(
        self, request: env_pb2.InteractRequest, seconds: float
    ) -> env_pb2.InteractResponse:
        frame = await self._exchange(Frame(Kind.COMMAND, request.SerializeToString()), seconds)
        text = frame.payload.decode(errors="replace") if frame.kind is not Kind.ANSWER else ""
        if frame.kind is Kind.REFUSED:
            raise CommandRefusedError(text)
        if frame.kind is Kind.BROKEN_TASK:
            raise BrokenTaskError(text)
        if frame.kind is not Kind.ANSWER:
            await self.close()
            raise SimulatorFailedError(text)
        try:
            answer = env_pb2.InteractResponse.FromString(frame.payload)
        except DecodeError as error:
            await self.close()
            raise SimulatorFailedError(f"an answer that can't be read: {error}") from error
        self._count(frame, answer)
        return answer

    def _count(self, frame: Frame, answer: env_pb2.InteractResponse) -> None:
        self._metrics.render_seconds.inc(frame.render_seconds)
        self._metrics.physics_seconds.inc(frame.physics_seconds)
        self._metrics.control_steps.inc(answer.control_steps - self._control_steps)
        self._control_steps = answer.control_steps

    async def _exchange(self, frame: Frame, seconds: float) -> Frame:
        """Sends a frame and returns the one that answers it.

        An exchange that its caller abandons (a cancelled call) goes on to its end, so that the
        next one finds the connection in order.
        """
        if self._exchanging is not None:
            await asyncio.wait([self._exchanging])
        if not self.alive:
            raise SimulatorDiedError("the simulator process has ended")
        self._exchanging = asyncio.create_task(self._send_and_receive(frame, seconds))
        self._exchanging.add_done_callback(_mark_retrieved)
        return await asyncio.shield(self._exchanging)

    async def _send_and_receive(self, frame: Frame, seconds: float) -> Frame:
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(frame.encode())
                await self._writer.drain()
                header = decode_header(await self._reader.readexactly(HEADER.size))
                length, kind, physics_seconds, render_seconds = header
                payload = await self._reader.readexactly(length)
        except TimeoutError as error:
            await self.close()
            raise SimulatorHungError(f"no answer for {time.monotonic() - began:.1f} s") from error
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise SimulatorDiedError(await self._post_mortem()) from error
        return Frame(kind, payload, physics_seconds, render_seconds)

    async def _post_mortem(self) -> str:
        self.alive = False
        # A process whose connection broke is as good as gone; a moment lets it say how.
        code = await asyncio.to_thread(self._wait, 2.0)
        if code is None:
            await self.close()
            return "the simulator process closed its connection"
        await self.close()
        if code < 0:
            return f"the simulator process was killed by {signal.Signals(-code).name}"
        return f"the simulator process ended with status {code}"

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _kill(self) -> None:
        self.alive = False
        self._writer.close()
        self._child.kill()

    async def close(self) -> bool:
        """Ends the process by force and reaps it. May be repeated.

        Returns:
            Whether it is gone. One that is inside a driver, or whose memory is swapped out, ends
            when the kernel lets go of it: it is past doing anything, but it may still hold memory.
        """
        self._kill()
        if await asyncio.to_thread(self._wait, _EXIT_SECONDS) is not None:
            return True
        logger.warning(
            "simulator process %d was killed %.0f s ago and isn't gone", self.pid, _EXIT_SECONDS
        )
        return False


def _mark_retrieved(exchange: asyncio.Task[Frame]) -> None:
    # An abandoned exchange's error was recorded where it happened.
    if not exchange.cancelled():
        exchange.exception()
