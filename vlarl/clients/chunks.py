"""Plays a policy's chunks: control steps one by one, whatever a policy answers at once.

    with PolicyClient("127.0.0.1:50051") as client:
        policy = ChunkedPolicy(client, replan_after=4)
        while robot.moves:
            robot.move(policy.act(robot.frame(), "lift the bowl"))   # float32 [7]

A policy with a chunk answers several control steps at once, and is asked again when they have been
played. One without is asked at each step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlarl.clients.policy import Action, EncodedOrFrame, PolicyClient
from vlarl.rpc.arguments import whole

__all__ = ["ChunkedPolicy"]


class ChunkedPolicy:
    """A policy that answers one control step at a time. It belongs to one episode after another;
    its client may be shared.
    """

    def __init__(self, client: PolicyClient, *, replan_after: int | None = None) -> None:
        """Asks nothing yet.

        Args:
            client: of the policy server.
            replan_after: control steps of an answer that are played before the policy is asked
                again, at most as many as an answer has; none: all of them.

        Raises:
            ValueError: `replan_after` is no whole number of at least 1.
        """
        if replan_after is not None and whole("replan_after", replan_after, 32) < 1:
            raise ValueError("replan_after must be at least 1; leave it out to play whole chunks")
        self._client = client
        self._replan_after = replan_after
        self.reset()

    def reset(self) -> None:
        """Forgets what is left of a chunk: the next step asks. For the start of an episode."""
        self.action: Action | None = None
        """The answer that is played; none before the first."""
        self._instruction = ""
        self._left: list[NDArray[np.float32]] = []

    @property
    def asks(self) -> bool:
        """Whether `act` asks the policy next, if the instruction stays: only then is there
        something to see.
        """
        return not self._left

    def act(
        self,
        image: EncodedOrFrame,
        instruction: str,
        *,
        images: Mapping[str, EncodedOrFrame] | None = None,
        proprio: ArrayLike | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        unnorm_key: str | None = None,
        center_crop: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> NDArray[np.float32]:
        """The next control step: float32 [D], in the dataset's units.

        The policy is asked where nothing is left of its last answer, or the instruction is another
        one. Else nothing but the instruction is looked at. Arguments are `PolicyClient.predict`'s.

        Raises:
            ValueError: an argument can't be sent, or the answer has fewer control steps than
                `replan_after`; the message names it.
            PolicyError: the call failed. The next step asks again.
        """
        if not self._left or instruction != self._instruction:
            self._left = []
            action = self._client.predict(
                image,
                instruction,
                images=images,
                proprio=proprio,
                temperature=temperature,
                seed=seed,
                unnorm_key=unnorm_key,
                center_crop=center_crop,
                timeout_seconds=timeout_seconds,
            )
            steps = np.atleast_2d(action.values)
            if self._replan_after is not None and self._replan_after > len(steps):
                raise ValueError(
                    f"replan_after is {self._replan_after}, and an answer of the policy has "
                    f"{len(steps)} control step{'s' * (len(steps) > 1)}: set it to at most so "
                    "many, or leave it out"
                )
            self.action, self._instruction = action, instruction
            self._left = list(steps[: self._replan_after])
        return self._left.pop(0)
