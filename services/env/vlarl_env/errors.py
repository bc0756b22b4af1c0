"""How a simulator can be lost, and how it refuses."""

from __future__ import annotations

from vlarl.errors import FatalError


class NoSimulatorError(FatalError):
    """Not one simulator comes up here."""


class SimulatorError(RuntimeError):
    """The simulator is lost, and with it the episode's state; the message says why."""

    cause = "failed"
    """The cause in one word, for counting."""


class SimulatorDiedError(SimulatorError):
    """Its process ended."""

    cause = "died"


class SimulatorHungError(SimulatorError):
    """It gave no answer in time, and was killed."""

    cause = "hung"


class SimulatorFailedError(SimulatorError):
    """It reported an error of its own."""

    cause = "failed"


class CommandRefusedError(ValueError):
    """The command makes no sense; the simulator is unharmed."""


class BrokenTaskError(CommandRefusedError):
    """The task's scene can't be built or placed, by this simulator or any other."""


class BrokenSceneError(ValueError):
    """A scene that can't be built: no simulator could do better."""


class NoRoomError(ValueError):
    """A draw after which objects don't fit, however often it is tried; another seed's may."""


class UnknownTaskError(ValueError):
    """A suite, task or initial state that doesn't exist; the message names those that do."""
