"""What a suite is simulated with: versions, and a digest of its scenes.

    python -m vlarl_env.simulators.libero.identity SUITE < ENV_CONFIG.json

prints it as JSON, for whoever records results.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version

from vlarl.config import ConfigError, EnvConfig
from vlarl.config.libero import SIMULATOR_PACKAGE
from vlarl_env.errors import UnknownTaskError
from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_env.simulators.registry import TaskCatalog

PACKAGES = (SIMULATOR_PACKAGE, "robosuite", "mujoco")
"""What results depend on; meshes and textures belong to the first."""


def identity(tasks: Sequence[SuiteTask]) -> dict[str, str]:
    """Versions by package, and `scenes`: SHA-256 of the tasks' names, scene files and states."""
    digest = hashlib.sha256()
    for task in tasks:
        files = [task.bddl_file.read_bytes()]
        if task.states_file is not None:
            files.append(task.states_file.read_bytes())
        for content in (task.name.encode(), task.instruction.encode(), *files):
            digest.update(hashlib.sha256(content).digest())
    return {name: version(name) for name in PACKAGES} | {"scenes": digest.hexdigest()}


def main() -> None:
    """Entry point."""
    config = EnvConfig.model_validate_json(sys.stdin.read())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # LIBERO talks while it is imported.
            tasks = TaskCatalog(config.bddl_directories).tasks(sys.argv[1])
    except (ConfigError, UnknownTaskError) as error:
        sys.exit(str(error))
    print(json.dumps(identity(tasks)))


if __name__ == "__main__":
    main()
