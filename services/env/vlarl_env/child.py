"""A simulator process: `python -m vlarl_env.child FD`, where FD is its end of a socket pair.

It holds the simulators of the tasks that it ran last, answers one command at a time, and ends when
the socket closes or its parent dies.
"""

from __future__ import annotations

import signal
import socket
import sys
import traceback
from collections import OrderedDict

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.parent_death import end_with_parent
from vlarl_env.errors import BrokenSceneError, NoRoomError, UnknownTaskError
from vlarl_env.simulators.episode import BadCommandError, Simulator
from vlarl_env.simulators.registry import TaskCatalog
from vlarl_env.wire import HEADER, Frame, Kind, decode_header


def main() -> None:
    """Entry point."""
    leave_the_end_to_the_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    with connection:
        _serve(connection)


def leave_the_end_to_the_parent() -> None:
    """Leaves it to the parent when this process ends, and ends with it."""
    # The terminal's Ctrl-C goes to the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)


def _serve(connection: socket.socket) -> None:
    first = _receive(connection)
    if first is None:
        return
    config = EnvConfig.model_validate_json(first.payload)
    tasks = _Tasks(config)
    connection.sendall(Frame(Kind.READY).encode())
    while (frame := _receive(connection)) is not None:
        answer = tasks.answer(env_pb2.InteractRequest.FromString(frame.payload))
        connection.sendall(answer.encode())
        if answer.kind is Kind.FAILED:
            return


class _Tasks:
    """The simulators of this process, and the one that runs."""

    def __init__(self, config: EnvConfig) -> None:
        self._config = config
        self._catalog = TaskCatalog(config.bddl_directories)
        self._simulators: OrderedDict[tuple[str, int], Simulator] = OrderedDict()
        self._running: Simulator | None = None

    def answer(self, request: env_pb2.InteractRequest) -> Frame:
        """Carries a command out."""
        try:
            if request.WhichOneof("command") == "reset":
                self._running = self._simulator(request.reset)
            if self._running is None:
                return Frame(Kind.REFUSED, b"the first command must be a reset")
            return _carry_out(self._running, request)
        except BrokenSceneError as error:
            return Frame(Kind.BROKEN_TASK, str(error).encode())
        except (BadCommandError, NoRoomError, UnknownTaskError) as error:
            return Frame(Kind.REFUSED, str(error).encode())
        except Exception as error:  # noqa: BLE001 - the boundary of the simulator's libraries
            traceback.print_exc()
            return Frame(Kind.FAILED, f"{type(error).__name__}: {error}".encode())

    def _simulator(self, reset: env_pb2.ResetEpisode) -> Simulator:
        task = self._catalog.find(reset.task.suite, reset.task.index)
        key = (task.suite, task.index)
        if key not in self._simulators:
            while len(self._simulators) >= self._config.cached_tasks:
                self._simulators.popitem(last=False)[1].close()
            self._simulators[key] = Simulator(task, self._config)
        self._simulators.move_to_end(key)
        return self._simulators[key]


def _carry_out(simulator: Simulator, request: env_pb2.InteractRequest) -> Frame:
    physics, render = simulator.physics_seconds, simulator.render_seconds
    if request.WhichOneof("command") == "reset":
        response = simulator.reset(request.reset)
    else:
        response = simulator.step(request.step)
    return Frame(
        Kind.ANSWER,
        response.SerializeToString(),
        simulator.physics_seconds - physics,
        simulator.render_seconds - render,
    )


def _receive(connection: socket.socket) -> Frame | None:
    header = _exactly(connection, HEADER.size)
    if header is None:
        return None
    length, kind, _, _ = decode_header(header)
    payload = _exactly(connection, length)
    return None if payload is None else Frame(kind, payload)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    """The next `count` bytes; None where the connection ends before."""
    received = bytearray()
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            return None
        received += piece
    return bytes(received)


if __name__ == "__main__":
    main()
