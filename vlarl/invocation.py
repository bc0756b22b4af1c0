"""How to call this environment's programs, for hints that can be pasted as they are."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def invocation(program: str = "vlarl") -> str:
    """The program as a person here would type it: its name where PATH finds it, else a path to
    where it lies beside this Python, relative if that is below the working directory.
    """
    script, here = Path(sys.executable).with_name(program), Path.cwd()
    found = shutil.which(program)
    if not script.exists() or (found is not None and script.samefile(found)):
        return program
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))
