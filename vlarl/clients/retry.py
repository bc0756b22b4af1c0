"""What a client does where a server finds it too fast: it waits as long as it is told."""

from __future__ import annotations

import random
import time

from vlarl.rpc.errors import CallError


class Patience:
    """How long a call that the server finds too early may go on being tried.

    patience = Patience(30)
    while True:
        try:
            return call(request, timeout=patience.left)
        except grpc.RpcError as error:
            pause = patience.pause_after(PolicyError.from_rpc(error, address))
        time.sleep(pause)
    """

    def __init__(self, seconds: float) -> None:
        """Takes the seconds for all tries together, from now on."""
        self._deadline = time.monotonic() + seconds
        self._refusals = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_after(self, error: CallError) -> float:
        """Seconds until the next try is worth it.

        Raises:
            CallError: this one, where the server named no time, or one after the deadline.
        """
        wait = error.retry_seconds
        if wait is None or wait >= self.left:
            raise error
        # Several that are refused at once and wait equally long would meet again.
        self._refusals += 1
        pause = wait * random.uniform(1, self._refusals)
        return pause if pause < self.left else wait
