"""Which GPU of a machine does what, and whether the weights that go there fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlarl.disk import size_text
from vlarl.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A device as its driver describes it."""

    name: str
    memory: int
    """Bytes, those in use included."""


def chosen_gpu(gpus: Sequence[Gpu], chosen: str, what: str) -> int:
    """The number of the GPU that is chosen.

    Args:
        gpus: all that are seen.
        chosen: a number, or "last".
        what: who is to use it, for the error.

    Raises:
        ConfigError: there is none of this number.
    """
    number = len(gpus) - 1 if chosen == "last" else int(chosen) if chosen.isdigit() else -1
    if not 0 <= number < len(gpus):
        seen = ", ".join(f"{place}: {gpu.name}" for place, gpu in enumerate(gpus)) or "none"
        raise ConfigError(f"{what}: there is no GPU {chosen} here; those seen are {seen}")
    return number


def check_room(gpus: Sequence[Gpu], weights: Mapping[str, tuple[int, int]]) -> None:
    """Makes sure that each GPU holds the weights of all that use it, which is the least they take.

    Args:
        gpus: all that are seen.
        weights: by who uses one, its number and bytes.

    Raises:
        ConfigError: one doesn't.
    """
    for number, gpu in enumerate(gpus):
        here = {who: size for who, (place, size) in weights.items() if place == number}
        if sum(here.values()) > gpu.memory:
            parts = " and ".join(f"{size_text(size)} for the {who}" for who, size in here.items())
            raise ConfigError(
                f"GPU {number} ({gpu.name}) has {size_text(gpu.memory)}, and weights alone take "
                f"{parts}: use a larger GPU, or a second one (docs/sizing.md)"
            )
