"""The failures that end a process."""

from __future__ import annotations


class FatalError(Exception):
    """Ends the process; the message is one sentence that names the cause and says what to do.

    The command line prints it and exits with code 1, without a traceback. Everything else that
    escapes is a defect, and shows one.
    """


class ConfigError(FatalError, ValueError):
    """The configuration of a run or a checkpoint is missing or can't be used; the message names the
    key or the file, and says what to do.
    """
