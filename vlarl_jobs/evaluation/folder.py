"""What an evaluation leaves behind, and goes on from when it was cut short.

OUT/evaluation.json   what was evaluated, how, and the score so far
    episodes.jsonl    one line an episode, in the order in which they ended
    config.toml       the resolved configuration
    videos/           where they were asked for
    rollouts/         likewise, a dataset of all episodes
    logs/             a log a service
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlarl.config import ConfigError, RunConfig, save_config
from vlarl.files import replace_text
from vlarl.json_lines import JsonLines
from vlarl_trainer.record.evaluation import EpisodeResult, Evaluation

_SCORE = "evaluation.json"
_CONFIG = "config.toml"
RUN_ID = "evaluation"
"""Every evaluation has a queue of its own, so they may share a name."""


class EvaluationFolder:
    """Holds the episodes of one policy under one protocol."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        """Opens the folder, new or begun.

        Args:
            path: the folder.
            protocol: everything that an episode's outcome depends on.

        Raises:
            ConfigError: it holds another policy's episodes, or another protocol's, or a run.
        """
        self.path = path
        self._protocol: dict[str, Any] = json.loads(json.dumps(protocol))
        check_no_run(path)
        before = path / _SCORE
        if before.exists():
            _check_same(
                path, json.loads(before.read_text(encoding="utf-8"))["protocol"], self._protocol
            )
        path.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(path / "episodes.jsonl")
        self.results = [EpisodeResult(**row) for row in self._lines.rows]
        """The episodes that have ended."""

    def save_config(self, config: RunConfig) -> None:
        """Writes the configuration from which services are started."""
        save_config(config, self.path)

    def has(self, task: int, init_state: int) -> bool:
        """Whether this episode has ended."""
        return any((one.task, one.init_state) == (task, init_state) for one in self.results)

    def add(self, result: EpisodeResult) -> None:
        """Records an episode durably."""
        self._lines.append(asdict(result))
        self.results.append(result)

    def write_score(self, evaluation: Evaluation, *, ended: bool) -> None:
        """Writes evaluation.json anew.

        Args:
            evaluation: the score so far.
            ended: whether no episode is still to come. With all of them, none of which was given
                up, the evaluation is complete; given-up ones are run when it is called again.
        """
        state = {"complete": ended and not evaluation.missing, "ended": ended}
        content = state | {"protocol": self._protocol} | evaluation.to_json()
        replace_text(self.path / _SCORE, json.dumps(content, indent=1) + "\n")


def check_no_run(path: Path) -> None:
    """Makes sure that an evaluation in this folder overwrites no run's configuration.

    Raises:
        ConfigError: there is one.
    """
    saved = path / _CONFIG
    if (path / _SCORE).exists() or not saved.exists():
        return
    try:
        name = tomllib.loads(saved.read_text(encoding="utf-8")).get("name")
    except (OSError, ValueError):
        name = None
    if name != RUN_ID:
        raise ConfigError(f"{path} holds a run, not an evaluation: choose another --out")


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} holds an evaluation with {key} = {before.get(key)}, not {now.get(key)}: "
                "choose another --out"
            )
