"""The tasks that can be asked for, in words.

    python -m vlarl_env.tasks [SUITE] < ENV_CONFIG.json

prints a `ListTasksResponse` as JSON, for whoever wants to know before a server runs.
"""

from __future__ import annotations

import contextlib
import sys

from google.protobuf.json_format import MessageToJson

from vlarl.config import ConfigError, EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.errors import UnknownTaskError
from vlarl_env.simulators.registry import TaskCatalog


def list_tasks(catalog: TaskCatalog, suite: str = "") -> env_pb2.ListTasksResponse:
    """The tasks of one suite; empty: of all.

    Raises:
        UnknownTaskError: no such suite.
    """
    suites = [suite] if suite else catalog.suites
    return env_pb2.ListTasksResponse(
        tasks=[
            env_pb2.TaskDescription(
                task=rollout_pb2.Task(suite=task.suite, index=task.index),
                name=task.name,
                instruction=task.instruction,
                init_states=task.init_states,
                max_control_steps=task.max_control_steps,
            )
            for name in suites
            for task in catalog.tasks(name)
        ]
    )


def main() -> None:
    """Entry point."""
    config = EnvConfig.model_validate_json(sys.stdin.read())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # LIBERO talks while it is imported.
            tasks = list_tasks(TaskCatalog(config.bddl_directories), *sys.argv[1:2])
    except (ConfigError, UnknownTaskError) as error:
        sys.exit(str(error))
    print(MessageToJson(tasks))


if __name__ == "__main__":
    main()
