"""`python parent_death.py PARENT COMMAND...`: becomes COMMAND, sent SIGTERM when PARENT is gone.

A program of its own, not code between fork and exec: the supervisor has threads and gRPC channels,
and a fork of such a process may abort before it comes to the exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Has this process get the signal when the thread that started it is gone, however that ended.

    Asked too late, where the parent is gone already, the signal never comes. Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # It was gone before the kernel was asked.
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - what this program is for
