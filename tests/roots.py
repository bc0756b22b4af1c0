"""Where the packages lie, for programs that tests start."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOTS = (ROOT, *(ROOT / "services" / name for name in ("policy", "env", "reward", "trainer")))
"""As in pyproject.toml: the library, the jobs and the command lie in the first."""
PYTHONPATH = os.pathsep.join(map(str, ROOTS))
