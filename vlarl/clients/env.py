"""LIBERO's simulators from outside: lent by an env server, an episode at a time.

with EnvClient("127.0.0.1:50052") as env, PolicyClient("127.0.0.1:50051") as policy:
    with env.episode("libero_spatial", 3, init_state=0) as episode:
        while not episode.ended:
            episode.step(policy.predict(episode.image, episode.instruction).values)
    print(episode.success)
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.clients.closing import Closing
from vlarl.clients.retry import Patience
from vlarl.config.libero import ACTION_DIM, MAIN_CAMERA
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.arguments import sequence, text, vectors, whole
from vlarl.rpc.channel import channel_config, open_sync_channel
from vlarl.rpc.errors import EnvError

__all__ = ["EnvClient", "EnvError", "Episode"]


class EnvClient(Closing):
    """Borrows simulators of an env server, or of several behind one address.

    May be shared between threads; an episode belongs to one. Methods raise `EnvError` where a
    call fails.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        token_file: Path | str | None = None,
        tls_ca: Path | str | None = None,
        tls_certificate: Path | str | None = None,
        tls_key: Path | str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Opens a channel; see `PolicyClient`. An episode has no deadline, only its waiting to
        begin where the server finds this client too fast: the server gives up a simulator that
        hangs, the channel a server that is gone.
        """
        config = channel_config(token_file, tls_ca, tls_certificate, tls_key, timeout_seconds)
        self._address = address
        self._timeout = config.timeout_seconds
        self._channel = open_sync_channel(address, config, token=token)
        self._stub = env_pb2_grpc.EnvServiceStub(self._channel)

    def tasks(self, suite: str = "") -> list[env_pb2.TaskDescription]:
        """The tasks of one suite, or all that the server knows."""
        request = env_pb2.ListTasksRequest(suite=text("suite", suite))
        patience = Patience(self._timeout)
        while True:
            try:
                return list(self._stub.ListTasks(request, timeout=patience.left).tasks)
            except grpc.RpcError as error:
                pause = patience.pause_after(EnvError.from_rpc(error, self._address))
            time.sleep(pause)

    def episode(
        self,
        suite: str,
        task: int = 0,
        *,
        init_state: int | None = None,
        placement_seed: int | None = None,
        max_control_steps: int = 0,
        cameras: Sequence[str] = (MAIN_CAMERA,),
    ) -> Episode:
        """Borrows a simulator and starts an episode; `close` it, or use it as a context.

        Args:
            suite: libero_spatial, reach, ...; see `tasks`.
            task: its position in the suite, from 0.
            init_state: one of the task's official initial states, from 0.
            placement_seed: instead of one: draws a placement of its own.
            max_control_steps: after which the episode is cut; 0: the suite's limit.
            cameras: what to render: agentview, robot0_eye_in_hand; what the policy sees is
                `get_policy().cameras`.

        Raises:
            ValueError: neither or both of `init_state` and `placement_seed`, or an argument that
                can't be sent; the message names it.
            EnvError: refused; RESOURCE_EXHAUSTED where all simulators are lent out.
        """
        if (init_state is None) == (placement_seed is None):
            raise ValueError("an episode starts from init_state or from placement_seed")
        names = sequence("cameras", cameras, "names")
        reset = env_pb2.ResetEpisode(
            task=rollout_pb2.Task(suite=text("suite", suite), index=whole("task", task, 32)),
            max_control_steps=whole("max_control_steps", max_control_steps, 32),
            cameras=[text(f"cameras[{index}]", name) for index, name in enumerate(names)],
        )
        if init_state is not None:
            reset.init_state = whole("init_state", init_state, 32)
        else:
            reset.placement_seed = whole("placement_seed", placement_seed, 64)
        patience = Patience(self._timeout)
        while True:
            try:
                return Episode(self._stub, self._address, reset)
            except EnvError as error:
                pause = patience.pause_after(error)
            time.sleep(pause)

    def close(self) -> None:
        """Closes the channel; episodes in progress end."""
        self._channel.close()


class Episode(Closing):
    """One episode in a borrowed simulator, as it stands after the last step."""

    def __init__(
        self, stub: env_pb2_grpc.EnvServiceStub, address: str, reset: env_pb2.ResetEpisode
    ) -> None:
        self._address = address
        self._commands = queue.SimpleQueue[env_pb2.InteractRequest | None]()
        self._answers = stub.Interact(iter(self._commands.get, None))
        self.state = self._ask(env_pb2.InteractRequest(reset=reset))
        """Everything the server said: all frames, the arm, the last step's reward."""

    @property
    def image(self) -> bytes:
        """JPEG of the first camera, upright: what the policy wants to see."""
        return self.state.frames[0].image

    @property
    def images(self) -> dict[str, bytes]:
        """JPEGs of all cameras asked for, by their names and in that order."""
        return {frame.camera: frame.image for frame in self.state.frames}

    @property
    def proprio(self) -> NDArray[np.float32]:
        """[8], what policies read of the arm: position, axis-angle, fingers; [0] of a server that
        doesn't know it.
        """
        return np.array(self.state.robot_state.proprio, np.float32)

    @property
    def instruction(self) -> str:
        """The task in words."""
        return self.state.instruction

    @property
    def success(self) -> bool:
        """Whether the task is done."""
        return self.state.terminated

    @property
    def ended(self) -> bool:
        """Whether the task is done or the step limit reached; no further step is possible."""
        return self.state.terminated or self.state.truncated

    def step(self, action: ArrayLike, *, repeat: int = 0) -> env_pb2.InteractResponse:
        """Applies one action, or several one after the other, and returns the new state.

        The episode's end cuts several short: the state's `executed` says how many were executed.

        Args:
            action: [7] in the dataset's units, or [H, 7], as the policy answers in `values`.
            repeat: control steps for which each is held; 0: the server's own number.

        Raises:
            ValueError: an argument can't be sent; the message names it, the episode goes on.
            EnvError: the call failed, and the episode with it.
        """
        actions = vectors("action", action, ACTION_DIM)
        step = env_pb2.StepEpisode(
            action=actions.ravel(), repeat=whole("repeat", repeat, 32), horizon=len(actions)
        )
        self.state = self._ask(env_pb2.InteractRequest(step=step))
        return self.state

    def close(self) -> None:
        """Gives the simulator back; when this returns somebody else can have it."""
        self._commands.put(None)
        try:
            for _ in self._answers:
                pass
        except grpc.RpcError:
            pass  # whoever asked last was told

    def _ask(self, request: env_pb2.InteractRequest) -> env_pb2.InteractResponse:
        self._commands.put(request)
        try:
            return next(self._answers)
        except grpc.RpcError as error:
            # The thread that sends would wait for commands for ever.
            self._commands.put(None)
            raise EnvError.from_rpc(error, self._address) from error
        except StopIteration:
            text = f"{self._address}: the episode is closed"
            raise EnvError(grpc.StatusCode.FAILED_PRECONDITION, text) from None
