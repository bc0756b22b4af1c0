"""VLA-RL: online reinforcement learning of vision-language-action policies, as microservices.

    from vlarl import PolicyClient

    with PolicyClient("127.0.0.1:50051") as policy:
        action = policy.predict(frame, "put the bowl on the plate")

Importing this package loads nothing heavy; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlarl.clients.chunks import ChunkedPolicy
    from vlarl.clients.env import EnvClient, EnvError
    from vlarl.clients.policy import (
        Action,
        AsyncPolicyClient,
        Observation,
        PolicyClient,
        PolicyError,
    )

    __version__: str

__all__ = [
    "Action",
    "AsyncPolicyClient",
    "ChunkedPolicy",
    "EnvClient",
    "EnvError",
    "Observation",
    "PolicyClient",
    "PolicyError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("vlarl")
    if name in __all__:
        from vlarl.clients import chunks, env, policy

        module = next(one for one in (env, chunks, policy) if name in one.__all__)
        return getattr(module, name)
    raise AttributeError(f"module 'vlarl' has no attribute {name!r}")
