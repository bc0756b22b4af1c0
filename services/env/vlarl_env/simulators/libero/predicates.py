"""Goals of our own BDDL files, beyond LIBERO's on, in, open, turned on."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlarl_env.simulators.libero import headless

headless.prepare()

from libero.libero.envs.predicates import (  # noqa: E402
    VALIDATE_PREDICATE_FN_DICT,
    UnaryAtomic,
)

Untyped = Any
"""What LIBERO hands out: it has no types."""

HEIGHT_ABOVE = 0.10
"""Metres from the object's origin up to the point that is to be reached."""

REACH_RADIUS = 0.025
"""Metres within which the point counts as reached."""

NEAR_RADIUS = 0.21
"""Metres within which the point counts as near: random actions get there in one episode of five."""


class WithinAbove(UnaryAtomic):  # type: ignore[misc]
    """(NAME object): the end effector is within a radius of the point straight above the object."""

    def __init__(self, radius: float) -> None:
        """radius: in metres."""
        super().__init__()
        self._radius = radius

    def __call__(self, target: Untyped) -> bool:
        env = target.env
        point = target.get_geom_state()["pos"] + np.array([0.0, 0.0, HEIGHT_ABOVE])
        effector = env.sim.data.site_xpos[env.robots[0].eef_site_id]
        return bool(np.linalg.norm(effector - point) < self._radius)


def register() -> None:
    """Makes the predicates known to LIBERO's goal checker. Harmless when repeated."""
    VALIDATE_PREDICATE_FN_DICT["reachedabove"] = WithinAbove(REACH_RADIUS)
    VALIDATE_PREDICATE_FN_DICT["nearabove"] = WithinAbove(NEAR_RADIUS)
